import errno
import os
from pathlib import Path

import pytest

from agent.journal import Journal, blobs_of
from edgefarm.model import (
    AccuracyResult,
    Attempt,
    AttemptId,
    ContenderResult,
    Failure,
    FailureKind,
    LatencyResult,
    MemoryResult,
    Outcome,
)

SAMPLES = "sha256:" + "1" * 64


def attempt(order: str = "o", index: int = 0, outcome: Outcome | None = None) -> Attempt:
    return Attempt(order, index, "dev", 1000 + index, 5, outcome or LatencyResult((ContenderResult("k", 3, 1.5),), True, SAMPLES))


def test_an_attempt_survives_the_process_until_it_is_acknowledged(tmp_path: Path) -> None:
    Journal(tmp_path).append(attempt("order/with ../odd id", 2))
    again = Journal(tmp_path)
    assert again.attempts() == (attempt("order/with ../odd id", 2),)
    again.acknowledge(AttemptId("order/with ../odd id", 2))
    again.acknowledge(AttemptId("order/with ../odd id", 2))
    assert again.attempts() == Journal(tmp_path).attempts() == ()
    assert list(tmp_path.iterdir()) == []


def test_oldest_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for index in (2, 0, 1):
        journal.append(attempt(index=index))
    assert [a.index for a in Journal(tmp_path).attempts()] == [0, 1, 2]


def test_the_same_attempt_twice_is_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(attempt())
    failed = attempt(outcome=Failure(FailureKind.TRANSFER, "no"))
    journal.append(failed)
    assert Journal(tmp_path).attempts() == (failed,)


def test_half_written_and_unreadable_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(attempt())
    (tmp_path / f".x.attempt.{os.getpid()}.tmp").write_bytes(b"half")
    (tmp_path / "y.attempt").write_bytes(b"\xff\xff")
    assert Journal(tmp_path).attempts() == (attempt(),)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".attempt", ".unreadable"]


def test_a_full_disk_loses_nothing_while_the_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("agent.journal.atomic_write", full)
        assert not journal.append(attempt())
    assert journal.attempts() == (attempt(),)
    assert Journal(tmp_path).attempts() == ()
    journal.acknowledge(AttemptId("o", 0))
    assert journal.attempts() == ()


@pytest.mark.parametrize(
    ("outcome", "blobs"),
    [
        (LatencyResult((), True, SAMPLES), (SAMPLES,)),
        (LatencyResult(()), ()),
        (AccuracyResult("k", "sha256:" + "2" * 64, "", 3), ("sha256:" + "2" * 64,)),
        (MemoryResult("k", 1, 2, 3, 4), ()),
        (Failure(FailureKind.OOM, ""), ()),
    ],
)
def test_which_bytes_an_attempt_stands_on(outcome: Outcome, blobs: tuple[str, ...]) -> None:
    assert blobs_of(attempt(outcome=outcome)) == blobs
