"""The link and the transfers against a real gRPC server, in this process."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.cache import Cache
from agent.link import Credentials, Link
from agent.metrics import Counters
from agent.transfer import Cancelled, TimedOut, Transfers
from edgefarm import hostlock
from edgefarm.digest import digest_bytes
from edgefarm.errors import Busy, Denied, DigestMismatch, EdgefarmError, NotFound, ProtocolError, QuotaExceeded, Unreachable
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    Cancel,
    ControllerBody,
    Device,
    Drain,
    Heartbeat,
    Hello,
    OrderEnded,
    Welcome,
)
from tests.fakes.controller import SECRET, SESSION, FakeController

BIG = random.Random(1).randbytes(4_000_000)


class Attached:
    """A link in a thread, with everything that it received."""

    def __init__(self, farm: FakeController, folder: Path, secret: str = SECRET) -> None:
        self.received: list[ControllerBody] = []
        self.error: BaseException | None = None
        self.attached, self.ended, self._changed = threading.Event(), threading.Event(), threading.Condition()
        self.link = Link(
            farm.address, Credentials("dev", secret),
            hello=lambda: Hello(PROTOCOL, FEATURES, "i", Device("dev", "id", "host"), True),
            receive=self.receive, beat=lambda: Heartbeat("o", 1, 2), detached=self.attached.clear,
        )  # fmt: skip
        self.cache = Cache(folder / "cache", 32 << 20)
        self.counters, self.lock = Counters(), folder / "lock"
        self.transfers = Transfers(self.link.artifacts, self.cache, self.attached, self.counters, self.lock)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.link.run()
        except EdgefarmError as error:
            self.error = error
        self.ended.set()

    def receive(self, body: ControllerBody) -> None:
        with self._changed:
            self.received.append(body)
            self._changed.notify_all()
        if isinstance(body, Welcome):
            self.attached.set()

    def wait(self, kind: type[Any], count: int = 1) -> list[Any]:
        def found() -> list[Any]:
            return [b for b in self.received if isinstance(b, kind)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, 20), self.received
        return found()

    def stop(self) -> None:
        self.link.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[FakeController]:
    with FakeController(tmp_path) as made:
        yield made


@pytest.fixture
def device(farm: FakeController, tmp_path: Path) -> Iterator[Attached]:
    made = Attached(farm, tmp_path)
    assert made.attached.wait(20)
    yield made
    made.stop()


def never() -> bool:
    return False


def test_hello_comes_first_then_heartbeats(farm: FakeController, device: Attached) -> None:
    farm.wait(Heartbeat, 3)
    assert isinstance(farm.received[0], Hello)
    assert farm.of(Heartbeat)[0] == Heartbeat("o", 1, 2)
    farm.send(Cancel("o1"))
    farm.send(Drain())
    device.wait(Drain)
    assert [type(b) for b in device.received] == [Welcome, Cancel, Drain]


def test_the_secret_is_used_once_then_the_session(farm: FakeController, device: Attached) -> None:
    farm.end_streams()
    device.wait(Welcome, 2)
    assert farm.credentials == [
        {"edgefarm-device": "dev", "edgefarm-secret": SECRET},
        {"edgefarm-device": "dev", "edgefarm-session": SESSION},
    ]


def test_it_comes_back_after_the_controller_does(farm: FakeController, device: Attached) -> None:
    farm.stop()
    for _ in range(200):
        if not device.link.send(OrderEnded("o")):
            break
        device.ended.wait(0.05)
    assert not device.link.send(OrderEnded("o"))
    farm.start()
    device.wait(Welcome, 2)
    assert device.link.send(OrderEnded("later"))
    farm.wait(OrderEnded, matching=lambda b: b.order == "later")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Denied),
        (grpc.StatusCode.PERMISSION_DENIED, Denied),
        (grpc.StatusCode.FAILED_PRECONDITION, Busy),
        (grpc.StatusCode.INVALID_ARGUMENT, ProtocolError),
        (grpc.StatusCode.UNIMPLEMENTED, ProtocolError),
    ],
)
def test_statuses_that_end_the_agent(farm: FakeController, tmp_path: Path, code: grpc.StatusCode, error: type[EdgefarmError]) -> None:
    farm.refuse = lambda call, context: context.abort(code, "superseded")
    device = Attached(farm, tmp_path)
    assert device.ended.wait(20)
    assert type(device.error) is error
    assert "superseded" in str(device.error)
    assert len(farm.credentials) == 1


def test_other_statuses_are_tried_again(farm: FakeController, tmp_path: Path) -> None:
    failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED]

    def refuse(call: str, context: grpc.ServicerContext) -> None:
        if failures:
            context.abort(failures.pop(0), "not now")

    farm.refuse = refuse
    device = Attached(farm, tmp_path)
    device.wait(Welcome)
    device.stop()
    assert device.error is None


def test_a_fetch_is_verified_and_kept(farm: FakeController, device: Attached) -> None:
    digest = farm.put(BIG)
    path = device.transfers.fetch(digest, len(BIG), 30, never)
    assert path.read_bytes() == BIG
    assert device.transfers.fetch(digest, len(BIG), 30, never) == path
    assert farm.fetches == [(digest, 0)]
    assert device.counters.snapshot()[1] == {"fetch": len(BIG), "push": 0}


@pytest.mark.parametrize("payload", [b"", b"x", bytes(64 * 1024), bytes(64 * 1024 + 1), BIG * 4 + b"x"], ids=len)
def test_odd_sizes_both_ways(farm: FakeController, device: Attached, payload: bytes) -> None:
    digest = farm.put(payload)
    assert device.transfers.fetch(digest, None, 30, never).read_bytes() == payload
    farm.blobs.clear()
    device.transfers.push(digest, 30, never)
    assert farm.blobs == {digest: payload}


def test_a_fetch_goes_on_where_it_broke(farm: FakeController, device: Attached) -> None:
    digest = farm.put(BIG)
    farm.break_fetch_after = [300_000, 300_000]
    assert device.transfers.fetch(digest, None, 30, never).read_bytes() == BIG
    offsets = [offset for _, offset in farm.fetches]
    assert len(offsets) == 3
    assert offsets == sorted(set(offsets))
    assert device.counters.snapshot()[1] == {"fetch": len(BIG), "push": 0}  # no byte moved twice


def test_wrong_bytes_are_fetched_again_once(farm: FakeController, device: Attached) -> None:
    digest = farm.put(BIG)
    farm.corrupt_fetches = 1
    assert device.transfers.fetch(digest, None, 30, never).read_bytes() == BIG
    other = farm.put(BIG[1:])
    farm.corrupt_fetches = 5
    with pytest.raises(DigestMismatch):
        device.transfers.fetch(other, None, 30, never)
    assert device.cache.find(other) is None


def test_refusals_come_through(farm: FakeController, device: Attached) -> None:
    with pytest.raises(NotFound):
        device.transfers.fetch("sha256:" + "0" * 64, None, 30, never)
    with pytest.raises(QuotaExceeded, match="--cache-bytes"):
        device.transfers.fetch(farm.put(bytes(33 << 20)), None, 30, never)

    def refuse(call: str, context: Any) -> None:
        context.set_trailing_metadata((("edgefarm-code", "quota"),))
        context.abort(grpc.StatusCode.UNKNOWN, "too many bytes")

    farm.refuse = refuse
    with pytest.raises(QuotaExceeded, match="too many bytes"):
        device.transfers.push(device.cache.put(b"more"), 30, never)


def test_a_fetch_that_cannot_end_times_out(farm: FakeController, device: Attached) -> None:
    digest = farm.put(BIG)
    farm.refuse = lambda call, context: context.abort(grpc.StatusCode.UNAVAILABLE, "disk full")
    with pytest.raises(TimedOut, match="transfer of sha256"):
        device.transfers.fetch(digest, None, 0.2, never)


def test_a_cancelled_fetch_ends_and_keeps_what_came(farm: FakeController, device: Attached) -> None:
    digest = farm.put(BIG)
    with pytest.raises(Cancelled):
        device.transfers.fetch(digest, None, 30, lambda: bool(farm.fetches))
    farm.fetches.clear()
    assert device.transfers.fetch(digest, None, 30, never).read_bytes() == BIG


def test_nothing_moves_while_the_host_measures(farm: FakeController, device: Attached) -> None:
    digest, done = farm.put(BIG), threading.Event()

    def fetch() -> None:
        device.transfers.fetch(digest, None, 30, never)
        done.set()

    with hostlock.hold(exclusive=True, path=device.lock) as held:
        assert held
        thread = threading.Thread(target=fetch)
        thread.start()
        assert not done.wait(0.2)
        assert farm.fetches == []
    assert done.wait(20)
    thread.join()


def test_a_push_goes_on_where_it_broke(farm: FakeController, device: Attached) -> None:
    digest = device.cache.put(BIG)
    farm.break_push_after = [1_200_000]
    with pytest.raises(Unreachable):
        device.transfers.push(digest, 30, never)
    arrived = len(farm.partial[digest])
    assert 0 < arrived < len(BIG)
    device.transfers.push(digest, 30, never)
    assert farm.blobs[digest] == BIG
    device.transfers.push(digest, 30, never)  # it is there: nothing is sent
    assert digest_bytes(farm.blobs[digest]) == digest
