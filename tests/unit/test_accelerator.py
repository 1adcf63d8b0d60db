"""Memory on an accelerator: NVML by a fake module, Tegra by the file that L4T's nvmap_dev.c prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from agent.bench.accelerator import Held, held_by

# nvmap_debug_clients_show: "%-18s %18s %8s %11s\n", then "%-18s %18s %8u" and " %10lluK\n" for each client.
_CLIENTS = """CLIENT                        PROCESS      PID        SIZE
user                             Xorg      812     12,000K
user                          python3     4242      51200K
user                     nvargus-daem     1011       2048K
user                          python3     4242       1024K
total                                               66272K
""".replace("12,000K", " 12000K")


@dataclass(frozen=True)
class FakeProcess:
    pid: int
    usedGpuMemory: int | None


class FakeNvmlError(Exception):
    pass


def _fake_nvml(cards: Sequence[Sequence[FakeProcess]], error: str = "") -> ModuleType:
    """What held_by uses of nvidia-ml-py's `pynvml`; `error` is what listing processes ends with."""
    fake = ModuleType("pynvml")

    def processes(card: int) -> Sequence[FakeProcess]:
        if error:
            raise FakeNvmlError(error)
        return cards[card]

    members = {
        "NVMLError": FakeNvmlError, "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: index, "nvmlDeviceGetName": lambda card: f"Card {card}",
        "nvmlDeviceGetComputeRunningProcesses": processes,
    }  # fmt: skip
    for name, member in members.items():
        setattr(fake, name, member)
    return fake


@pytest.mark.parametrize("provider", ["", "CPUExecutionProvider", "CPU", "xnnpack", "none"])
def test_a_processor_has_no_memory_apart(provider: str, tmp_path: Path) -> None:
    assert held_by(1, provider, tmp_path) == Held("", None, "")


def test_an_accelerator_without_a_counter_says_so(tmp_path: Path) -> None:
    held = held_by(1, "QNNExecutionProvider", tmp_path)
    assert (held.bytes, "QNNExecutionProvider" in held.reason) == (None, True)


def test_nvml_is_summed_over_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = [[FakeProcess(7, 5 << 20), FakeProcess(8, 1 << 30)], [FakeProcess(7, 2 << 20)], []]
    monkeypatch.setitem(sys.modules, "pynvml", _fake_nvml(cards))
    assert held_by(7, "CUDAExecutionProvider", tmp_path) == Held("Card 0, Card 1", 7 << 20)


@pytest.mark.parametrize(
    ("cards", "error", "said"),
    [
        ([[FakeProcess(8, 1)]], "", "lists no process 7"),
        ([[FakeProcess(7, None)]], "", "does not tell the memory"),
        ([[]], "Not Supported", "NVML: Not Supported"),
    ],
)
def test_what_nvml_does_not_tell_is_no_zero(
    cards: list[list[FakeProcess]], error: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _fake_nvml(cards, error))
    held = held_by(7, "TensorrtExecutionProvider", tmp_path)
    assert held.bytes is None
    assert said in held.reason


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install" in held_by(7, "CUDAExecutionProvider", tmp_path).reason


def _tegra(root: Path, clients: str | None) -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    if clients is not None:
        folder = root / "sys/kernel/debug/nvmap/iovmm"
        folder.mkdir(parents=True)
        (folder / "clients").write_text(clients)
    return root


def test_a_board_with_shared_memory_tells_through_its_allocator(tmp_path: Path) -> None:
    held = held_by(4242, "CUDAExecutionProvider", _tegra(tmp_path, _CLIENTS))
    assert held.bytes == (51200 + 1024) * 1024
    assert "shared with the system" in held.name


@pytest.mark.parametrize(
    ("pid", "clients", "said"),
    [(4242, None, "must be root"), (99, _CLIENTS, "lists no process 99"), (4242, _CLIENTS.replace("K\n", "\n"), "not in K")],
)
def test_what_the_allocator_does_not_tell_is_no_zero(pid: int, clients: str | None, said: str, tmp_path: Path) -> None:
    held = held_by(pid, "TensorrtExecutionProvider", _tegra(tmp_path, clients))
    assert held.bytes is None
    assert said in held.reason
