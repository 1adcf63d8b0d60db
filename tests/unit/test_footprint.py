"""What the kernel counts, from copied files of /proc (proc(5))."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from agent.runner.footprint import footprint, mapped_bytes

_STATUS = "Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t   5000 kB\nVmRSS:\t   4000 kB\nThreads:\t3\n"
_ROLLUP = """55d98ca43000-7ffca8809000 ---p 00000000 00:00 0                          [rollup]
Rss:                4100 kB
Pss:                3000 kB
Pss_Dirty:           112 kB
Shared_Clean:       1524 kB
Private_Clean:       600 kB
Private_Dirty:      1120 kB
Private_Hugetlb:       7 kB
"""
_SMAPS = """7f0000000000-7f0000100000 r--s 00000000 08:01 1234                       {folder}/model.tflite
Size:               1024 kB
Rss:                 640 kB
Pss:                 640 kB
Private_Clean:       640 kB
Private_Dirty:         0 kB
VmFlags: rd sh
7f0000200000-7f0000300000 r--p 00000000 08:01 1235                       {folder}/below/weights 1.bin
Rss:                  60 kB
Pss:                  30 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
7f0000400000-7f0000500000 r-xp 00000000 08:01 1236                       {folder}/lib/libruntime.so.1
Rss:                 300 kB
Pss:                 100 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
7f0000600000-7f0000700000 r--p 00000000 08:01 1237                       {folder}s/other.bin
Rss:                 300 kB
Pss:                 200 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
7f0000800000-7f0000900000 rw-p 00000000 00:00 0
Rss:                2000 kB
Pss:                2000 kB
Private_Clean:         0 kB
Private_Dirty:      2000 kB
"""


def _process(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_the_kernels_numbers_are_in_bytes(tmp_path: Path) -> None:
    found = footprint(_process(tmp_path, status=_STATUS, smaps_rollup=_ROLLUP))
    assert found == {"peak_rss_bytes": 5000 * 1024, "pss_bytes": 3000 * 1024, "private_bytes": 1720 * 1024}


def test_a_peak_that_lags_is_not_below_what_is_there_now(tmp_path: Path) -> None:
    lagging = _STATUS.replace("   5000 kB", "   4050 kB")
    assert footprint(_process(tmp_path, status=lagging, smaps_rollup=_ROLLUP))["peak_rss_bytes"] == 4100 * 1024


def test_older_kernels_tell_by_mapping(tmp_path: Path) -> None:
    found = footprint(_process(tmp_path, status=_STATUS, smaps=_SMAPS.format(folder="/models/a")))
    assert (found["pss_bytes"], found["private_bytes"]) == (2970 * 1024, 2644 * 1024)


def test_a_kernel_that_does_not_tell_is_no_zero(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        footprint(_process(tmp_path, status="Name:\tpython\n", smaps_rollup=_ROLLUP))
    with pytest.raises(OSError):
        footprint(tmp_path / "absent")


def test_the_models_files_are_told_from_libraries_and_neighbours(tmp_path: Path) -> None:
    model = tmp_path / "models" / "model.tflite"
    process = _process(tmp_path, smaps=_SMAPS.format(folder=model.parent))
    assert mapped_bytes(model, process) == 700 * 1024
    assert mapped_bytes(tmp_path / "elsewhere" / "model.tflite", process) == 0


def test_a_file_is_found_through_a_link(tmp_path: Path) -> None:
    kept, handed = tmp_path / "kept" / "model.tflite", tmp_path / "handed" / "model.tflite"
    kept.parent.mkdir()
    handed.parent.mkdir()
    kept.write_bytes(bytes(mmap.PAGESIZE * 4))
    handed.symlink_to(kept)
    with kept.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        touched = sum(view[page * mmap.PAGESIZE] for page in range(4))
        assert touched == 0
        assert mapped_bytes(handed) == 4 * mmap.PAGESIZE
    assert mapped_bytes(handed) == 0


def test_this_process_reads_itself() -> None:
    before = footprint()
    taken = bytearray(b"x" * (32 << 20))
    after = footprint()
    assert after["private_bytes"] - before["private_bytes"] > len(taken) * 0.9
    assert after["peak_rss_bytes"] >= after["private_bytes"] > 0
    assert after["pss_bytes"] <= after["peak_rss_bytes"]
