"""The control plane that its tests speak to in both ways; each module makes the `farm` behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.client import Client
from controller.control import Control
from controller.farm import Farm
from tests.fakes.connections import served
from tests.fakes.devices import FakeClock, FakeDevice


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["in-process", "over-grpc"])
def control(request: pytest.FixtureRequest, farm: Farm, tmp_path: Path) -> Iterator[Control]:
    if request.param == "in-process":
        yield farm
        return
    with served(farm) as connection:
        yield Client(connection, tmp_path / "cache")


@pytest.fixture
def device(farm: Farm) -> FakeDevice:
    made = FakeDevice(farm)
    made.attach()
    return made
