"""What a driver tells while it measures: what its orders wait for, from when to when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from controller.artifacts import ArtifactStore
from controller.events import Events
from controller.farm import Farm
from controller.measuring import Measuring
from controller.scoring import Scoring
from controller.store import SqlStore
from edgefarm.errors import RunCancelled
from tests.fakes.devices import FakeDevice
from tests.fakes.world import Truth, make_group

LONG_S = 60.0


class FakeEvents(Events):
    """Keeps what is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[dict[str, Any]] = []
        self.changed = threading.Condition()

    def emit(self, event: str, text: str = "", **fields: Any) -> None:
        with self.changed:
            self.told.append({"event": event, "text": text, **fields})
            self.changed.notify_all()

    def wait_for_waits(self, states: list[str]) -> dict[str, Any]:
        """The first event that says that orders wait for devices in these states, and in no others."""

        def found() -> list[dict[str, Any]]:
            return [e for e in self.told if e["event"] == "waits" and [w["state"] for w in e["waits"]] == states]

        with self.changed:
            assert self.changed.wait_for(found, LONG_S), self.told
            return found()[0]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    store = SqlStore(":memory:")
    yield Farm(store, ArtifactStore(tmp_path / "artifacts"), wall=lambda: 1000)
    store.close()


def test_what_orders_wait_for_is_told_as_it_changes(farm: Farm) -> None:
    device = FakeDevice(farm)
    device.attach()
    farm.lease(["bench-1"], "bob", 3600.0)
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    group = make_group(
        [Truth("source", 10**6), Truth("fast", 10**5)], run=run, device_class=device.device.device_class, devices=("bench-1",)
    )
    events, ended = FakeEvents(), []

    def measure() -> None:
        try:
            Measuring(run, [group], farm, cast(Scoring, None), events).run()
        except RunCancelled as error:
            ended.append(error)

    measuring = threading.Thread(target=measure)
    measuring.start()
    leased = events.wait_for_waits(["leased"])
    assert leased["text"] == "waits for bench-1: leased to bob until 1970-01-01 01:00 UTC"
    assert leased["waits"] == [
        {
            "device": "bench-1", "orders": 1, "state": "leased", "holder": "bob", "until": "1970-01-01T01:00:01Z", "ahead": 0,
            "reason": "leased to bob until 1970-01-01 01:00 UTC",
        }
    ]  # fmt: skip
    farm.drain(["bench-1"], "eve")
    assert events.wait_for_waits(["draining"])["text"].endswith("drained by eve until it is released")
    farm.release(["bench-1"], None)
    assert events.wait_for_waits([])["text"] == ""
    farm.cancel_run(run)
    measuring.join(LONG_S)
    assert ended
