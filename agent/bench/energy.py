"""Energy per inference: idle, a window of load, idle again, with a power meter read all the while.

The runner holds the model in all three windows, so that what is subtracted is a device that could answer at once. An external meter's
clock is aligned first, by a load that is switched on and off.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

from agent import power
from agent.bench.session import Session, session, without_path
from agent.bench.site import Measured, Site
from agent.power.sampler import Sampler
from agent.runner.process import Cancelled, RunnerFailed
from edgefarm.energy.align import align
from edgefarm.energy.estimate import LEAST_UPDATES, Estimate, Progress, Unusable, Window, estimate
from edgefarm.energy.signal import Signal
from edgefarm.model import EnergyResult, EnergyWork, Failure, FailureKind, Limits, Outcome, Scenario, Stage

_TICK_S = 0.05
_SETTLE_NS = 1_000_000_000  # threads of a runtime spin on for some 80 ms, converters and fans need longer
_IDLE_UPDATES = 20  # of the sensor, in each idle window, where they come at all
_LONGEST_IDLE_NS = 30_000_000_000
_LONGEST_LOAD_NS = 180_000_000_000
_MARGIN = 1.1  # of the window's length, for updates at its ends that don't count
# Milliseconds on and off, all different, so that one offset fits and no other does.
_PATTERN_MS = ((1700, 900), (700, 1500), (1200, 2300), (2100, 600), (900, 1900), (1500, 1100))


def measure_energy(work: EnergyWork, path: Path, inputs: Path, limits: Limits, site: Site) -> Measured:
    """Energy of one contender in a fresh runner. Where there is none the result says why (`unavailable`).

    Args:
        work: what to measure; `source` may be SOURCE or SOURCE/RAIL.
        path: the contender's main file.
        inputs: the tensor pack that `work.inputs` names.
        limits: time-outs and memory; a load window is at most `run_ns` long.
        site: where, with `site.meter`.
    """
    with session(site, limits, [path], [inputs]) as measuring:
        try:
            source, rail = power.choose(work.source, site.sensors_root, site.meter)
            outcome: Outcome = _Pass(measuring, work, source, rail).measure(path, inputs)
        except (power.NoPower, Unusable) as error:
            outcome = EnergyResult(work.contender.key, unavailable=str(error))
        except RunnerFailed as error:
            outcome = without_path(error.failure, path, work.contender.candidate.artifact.main_file)
        return measuring.finish(outcome)


def rate_of(scenario: Scenario) -> float | None:
    """Inferences to start per second under a scenario; None: one after the other. Raises Unusable.

    Under `server` requests come at even intervals here: energy above idle hangs on how many there are, hardly on when.
    """
    if any(size != 1 for size in scenario.batch_sizes):
        raise Unusable("energy of batches is not measured, only that of single inferences")
    return scenario.rate_per_s if scenario.kind in ("paced", "server") else None


class _Pass:
    def __init__(self, measuring: Session, work: EnergyWork, source: power.Source, rail: power.Rail) -> None:
        self._session, self._work, self._source, self._rail = measuring, work, source, rail
        self._key = work.contender.key
        self._rate = rate_of(work.scenario)
        self._longest_ns = min(_LONGEST_LOAD_NS, measuring.limits.run_ns)
        self._shift_ns = self._uncertainty_ns = 0

    def measure(self, path: Path, inputs: Path) -> EnergyResult:
        """Runs the windows. Raises Unusable, RunnerFailed, Cancelled."""
        with self._session.runner() as runner, Sampler(self._source, self._rail) as sampler:
            self._runner, self._sampler, self._inputs = runner, sampler, str(inputs.absolute())
            self._session.load(runner, self._key, self._work.contender.candidate, path)
            runner.call({"do": "first", "key": self._key, "inputs": self._inputs}, self._session.limits.run_ns, Stage.RUN)
            self._spend(_SETTLE_NS, None)
            if self._source.external:
                self._align()
            before = self._idle()
            load, progress = self._load()
            after = self._idle(least_ns=before.end_ns - before.begin_ns)
            self._rest(max(0, self._shift_ns) + self._signal().period_ns)  # the meter has yet to tell of the window's end
            signal = self._signal()
        if not signal.updates_at:
            raise Unusable(f"{self._source.name}/{self._rail.name}: {sampler.missed or 'no reading'}")
        found = estimate(signal, before, load, after, progress, uncertainty_ns=self._uncertainty_ns)
        self._tell(found)
        return self._result(found, load)

    def _signal(self) -> Signal:
        return self._sampler.signal(self._shift_ns)

    def _spend(self, duration_ns: int, rate: float | None) -> list[list[int]]:
        """Load for a time; its marks, which are claims of the runner until they are checked."""
        request = {"do": "spend", "key": self._key, "inputs": self._inputs, "duration_ns": duration_ns, "rate_per_s": rate}
        asked = time.monotonic_ns()
        marks: list[list[int]] = self._runner.call(request, duration_ns + self._session.limits.run_ns, Stage.RUN).body["marks"]
        in_order = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(marks))
        if len(marks) < 2 or marks[0][1] or not in_order or marks[0][0] < asked or marks[-1][0] > time.monotonic_ns():
            raise RunnerFailed(Failure(FailureKind.CRASH, "the runner's account of its inferences contradicts itself", Stage.RUN))
        return marks

    def _rest(self, duration_ns: int) -> None:
        """Nothing of ours runs but the sensors. Raises Cancelled."""
        end = time.monotonic_ns() + duration_ns
        while (left := end - time.monotonic_ns()) > 0:
            if self._session.site.cancelled():
                raise Cancelled
            self._session.watch.tick()
            time.sleep(min(_TICK_S, left / 1e9))

    def _idle(self, least_ns: int = 0) -> Window:
        """An idle window: long enough for some updates of the sensor, where it gives any."""
        self._rest(_SETTLE_NS)
        begin = time.monotonic_ns()
        self._rest(max(self._work.idle_ns, least_ns))
        while not least_ns and time.monotonic_ns() - begin < _LONGEST_IDLE_NS and self._updates(begin) < _IDLE_UPDATES:
            self._rest(_SETTLE_NS)
        return Window(begin, time.monotonic_ns())

    def _updates(self, begin_ns: int) -> int:
        return self._signal().updates(begin_ns, time.monotonic_ns())

    def _load(self) -> tuple[Window, Progress]:
        """The load window, prolonged until the sensor updated often enough. Raises Unusable where that takes too long."""
        marks: list[list[int]] = []
        length_ns = self._work.window_ns
        while True:
            done = marks[-1][1] if marks else 0
            marks += [[at, done + count] for at, count in self._spend(length_ns, self._rate)]
            begin, end = marks[0][0], marks[-1][0]
            signal = self._signal()
            guard = max(2 * signal.period_ns, self._uncertainty_ns)
            updates, spent = signal.updates(begin + guard, end - guard), end - begin
            if updates >= LEAST_UPDATES:
                return Window(begin, end), Progress([m[0] for m in marks], [m[1] for m in marks])
            needed = int(spent * LEAST_UPDATES / max(updates, 1) * _MARGIN)
            if needed > self._longest_ns:
                raise Unusable(self._too_slow(updates, spent, needed))
            length_ns = max(needed - spent, self._work.window_ns // 10)

    def _too_slow(self, updates: int, spent_ns: int, needed_ns: int) -> str:
        where = f"{self._source.name}/{self._rail.name}"
        if updates == 0:
            return f"{where}: no update in {spent_ns / 1e9:.0f} s of load{': ' + self._sampler.missed if self._sampler.missed else ''}"
        return (
            f"{where}: {updates} updates in {spent_ns / 1e9:.0f} s of load; {LEAST_UPDATES} would take {needed_ns / 1e9:.0f} s, "
            f"the limit is {self._longest_ns / 1e9:.0f} s"
        )

    def _align(self) -> None:
        """Switches the load on and off until the meter's delay is known. Raises Unusable."""
        on: list[Window] = []
        self._rest(2 * _SETTLE_NS)
        for on_ms, off_ms in _PATTERN_MS:
            marks = self._spend(on_ms * 1_000_000, None)
            on.append(Window(marks[0][0], marks[-1][0]))
            self._rest(off_ms * 1_000_000)
        self._rest(2 * _SETTLE_NS)
        found = align(self._sampler.signal(), on)
        self._shift_ns, self._uncertainty_ns = found.offset_ns, found.uncertainty_ns
        self._session.watch.settings["energy_meter_delay"] = (
            f"{found.offset_ns / 1e6:.0f} ms ({found.low_ns / 1e6:.0f} to {found.high_ns / 1e6:.0f})"
        )

    def _tell(self, found: Estimate) -> None:
        """What a person wants to know beside the number."""
        settings = self._session.watch.settings
        settings["energy_load"] = f"{self._rate:g} per second, at even intervals" if self._rate else "one after the other"
        settings["energy_covered"] = f"{100 * found.covered:.1f} %"
        settings["energy_idle_drift"] = f"{found.idle_drift_watts:+.3g} W"
        if self._sampler.missed:
            self._session.watch.unavailable("energy_readings", self._sampler.missed)

    def _result(self, found: Estimate, load: Window) -> EnergyResult:
        rail = self._rail
        return EnergyResult(
            self._key, found.joules * 1e6, found.low * 1e6, found.high * 1e6, found.inferences, found.load_watts, found.idle_watts,
            load.end_ns - load.begin_ns, found.updates, found.rate_hz, self._source.name, rail.name, rail.includes, rail.accuracy,
            idle_subtracted=True,
        )  # fmt: skip
