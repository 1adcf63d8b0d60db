"""What can go wrong around a measurement, done on purpose: to a real runner, or to a copied tree of /sys that is read meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

FULL_HERTZ, DROPPED_HERTZ = 1_800_000, 900_000  # as the files say it, in kHz
_SPIN = "while True: pass"


@contextlib.contextmanager
def stress(per_core: int = 2) -> Iterator[None]:
    """Processes that want all of the CPUs that this one may use, several times over; each a session, as services are.

    The kernel shares a CPU between sessions first (autogroup): those of one session together get no more than a runner does.
    """
    count = per_core * len(os.sched_getaffinity(0))
    command = [sys.executable, "-S", "-c", _SPIN]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@contextlib.contextmanager
def stopped_runner(when_s: float = 0.0, for_s: float = 0.4) -> Iterator[None]:
    """Stops the first runner that this process starts, a moment after it has begun to compute, and lets it go on."""

    def work(over: threading.Event) -> None:
        if (runner := _await_runner(over, when_s)) is not None:
            with contextlib.suppress(psutil.Error):
                runner.send_signal(signal.SIGSTOP)
                over.wait(for_s)
                runner.send_signal(signal.SIGCONT)

    with _meanwhile(work):
        yield


@contextlib.contextmanager
def falling_frequency(root: Path, after_s: float = 1.0) -> Iterator[None]:
    """The cores of a copied tree run at half of their frequency once a runner has computed for a while, as when a hot board slows down."""
    files = sorted(root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"))

    def work(over: threading.Event) -> None:
        _await_runner(over, after_s)
        for file in files:
            file.write_text(f"{DROPPED_HERTZ}\n")

    with _meanwhile(work):
        yield
    for file in files:
        file.write_text(f"{FULL_HERTZ}\n")


@contextlib.contextmanager
def raised_flag(path: Path, content: str, calm: str, after_s: float, for_s: float) -> Iterator[None]:
    """A file of a copied tree says something else for a while."""

    def work(over: threading.Event) -> None:
        over.wait(after_s)
        path.write_text(content)
        over.wait(for_s)
        path.write_text(calm)

    with _meanwhile(work):
        yield
    path.write_text(calm)


def board(cores: int) -> dict[str, str]:
    """A cool Raspberry Pi 4 whose cores run at full speed, for as many cores as this machine has."""
    frequency = {"scaling_cur_freq": FULL_HERTZ, "scaling_max_freq": FULL_HERTZ, "cpuinfo_max_freq": FULL_HERTZ}
    return {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48000\n",
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
        "sys/class/thermal/cooling_device0/cur_state": "0\n",
        "sys/class/thermal/cooling_device0/max_state": "13\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0\n",
        **{f"sys/devices/system/cpu/cpu{n}/cpufreq/{file}": f"{value}\n" for n in range(cores) for file, value in frequency.items()},
    }


def _await_runner(over: threading.Event, computed_s: float) -> psutil.Process | None:
    """The first runner that this process has started, once it has used so much CPU time."""
    while not over.wait(0.02):
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "agent.runner.child" in child.cmdline() and child.cpu_times().user >= computed_s:
                    return child
    return None


@contextlib.contextmanager
def _meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
