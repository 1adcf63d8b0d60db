"""A server on a socket of its own and a device that may attach; each module makes the `farm` behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.farm import Farm
from controller.server import RuntimeFolder, Server
from tests.fakes.agent import FakeAgent


@pytest.fixture
def server(farm: Farm) -> Iterator[Server]:
    folder = RuntimeFolder()
    made = Server(farm, folder.address)
    made.start()
    yield made
    made.stop()
    folder.close()


@pytest.fixture
def agent(farm: Farm, server: Server) -> Iterator[FakeAgent]:
    with FakeAgent(server.address, secret=farm.doorkeeper.invite("bench-1")) as made:
        yield made
