"""The driver's side over real gRPC: breaks, restarts, resumed bytes, who may do what."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from controller import client as client_module
from controller.artifacts import ArtifactStore
from controller.client import Client
from controller.connection import MESSAGE_BYTES, Connection
from controller.farm import Farm
from controller.report.kept import keep, kept
from controller.roles import LEAST_ROLE, ROLES, Caller
from controller.server import RuntimeFolder, Server
from controller.servicers import control as control_servicer
from controller.servicers.control import ControlServicer
from controller.store import SqlStore
from edgefarm.digest import digest_bytes
from edgefarm.errors import Busy, Denied, NotFound, RunCancelled, Unreachable, UserError
from edgefarm.model import DeploymentState, DeploymentStatus, OrderState
from edgefarm.v1 import control_pb2, control_pb2_grpc
from tests.fakes.connections import FakeLink
from tests.fakes.devices import FakeDevice
from tests.fakes.orders import a_device, an_attempt, an_order

BIG = os.urandom(6 * 2**20 + 12345)
BIG_DIGEST = digest_bytes(BIG)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    made = SqlStore(tmp_path / "store.db")
    yield made
    made.close()


@pytest.fixture
def farm(store: SqlStore, tmp_path: Path) -> Farm:
    made = Farm(store, ArtifactStore(tmp_path / "artifacts"))
    made.open_run("c", "spec", "{}", "me", {})
    return made


@pytest.fixture
def folder() -> Iterator[RuntimeFolder]:
    made = RuntimeFolder()
    yield made
    made.close()


@pytest.fixture
def server(farm: Farm, folder: RuntimeFolder) -> Iterator[Server]:
    made = Server(farm, folder.address)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def link(server: Server, folder: RuntimeFolder) -> Iterator[FakeLink]:
    made = FakeLink(folder.path, server.address)
    yield made
    made.close()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[str], Client]]:
    """Clients of an address, each with a cache of its own."""
    made: list[Connection] = []

    def connected(address: str, patience_s: float = 30.0) -> Client:
        made.append(Connection(address, patience_s=patience_s))
        return Client(made[-1], tmp_path / f"cache-{len(made)}")

    yield connected
    for connection in made:
        connection.close()


# Breaks and restarts


def test_a_controller_that_restarts_only_delays(farm: Farm, folder: RuntimeFolder, connect: Callable[..., Client]) -> None:
    first = Server(farm, folder.address)
    control = connect(first.start())
    farm.submit([an_order("o1")])
    seen = control.progress("c@1")
    assert [s.order for s in seen.orders] == [an_order("o1")]
    first.stop()
    news: list[int] = []
    waiting = threading.Thread(target=lambda: news.append(control.progress("c@1", seen.revision, 30.0).revision))
    waiting.start()  # there is nobody to answer
    second = Server(farm, folder.address)
    second.start()
    control.submit([an_order("o2")])
    waiting.join(30.0)
    second.stop()
    assert news
    assert news[0] > seen.revision


def test_patience_ends_with_the_name_of_the_controller(folder: RuntimeFolder, connect: Callable[..., Client]) -> None:
    with pytest.raises(
        Unreachable, match=rf"controller {folder.address} could not be reached for 0.3 s: .*what was measured is kept"
    ) as caught:
        connect(folder.address, 0.3).devices()
    assert caught.value.exit_code == 6


def test_going_back_is_not_repeated(farm: Farm, server: Server, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """All other calls are; a second way back would lead one deployment further."""
    asked: list[str] = []

    def roll_back(model: str, devices: object) -> None:
        asked.append(model)
        raise Unreachable("the controller stops")

    monkeypatch.setattr(farm, "roll_back", roll_back)
    with pytest.raises(Unreachable, match="may have ordered the way back or not: 'controller devices' shows what runs"):
        connect(server.address).roll_back("m", [])
    assert asked == ["m"]


def test_an_upload_goes_on_where_it_broke(farm: Farm, link: FakeLink, connect: Callable[..., Client], tmp_path: Path) -> None:
    link.break_after = [3 * 2**20, 2 * 2**20]
    source = tmp_path / "model.onnx"
    source.write_bytes(BIG)
    control = connect(link.address)
    assert control.put(source) == BIG_DIGEST
    assert farm.artifacts.local_path(BIG_DIGEST).read_bytes() == BIG
    assert link.break_after == []
    carried = link.carried
    assert carried < len(BIG) + 4 * 2**20, "what had arrived was not sent again"
    assert control.put(BIG) == BIG_DIGEST
    assert link.carried - carried < 10_000, "what is there is not sent"


def test_a_download_goes_on_where_it_broke(farm: Farm, link: FakeLink, connect: Callable[..., Client]) -> None:
    farm.put(BIG)
    link.break_after = [3 * 2**20, 2 * 2**20]
    control = connect(link.address)
    assert control.get(BIG_DIGEST).read_bytes() == BIG
    assert link.break_after == []
    carried = link.carried
    assert carried < len(BIG) + 4 * 2**20
    assert control.get(BIG_DIGEST).read_bytes() == BIG
    assert link.carried == carried, "it is kept"
    with pytest.raises(NotFound, match="no artifact"):
        control.get(digest_bytes(b"unknown"))


def test_damaged_parts_on_either_side_are_mended(farm: Farm, server: Server, connect: Callable[..., Client], tmp_path: Path) -> None:
    control = connect(server.address)
    for artifacts in (farm.artifacts, ArtifactStore(tmp_path / "cache-1")):
        with artifacts.writer(BIG_DIGEST) as writer:
            writer.write(bytes(2**20))
    assert control.put(BIG) == BIG_DIGEST
    assert control.get(BIG_DIGEST).read_bytes() == BIG


def test_a_file_that_can_t_be_read_is_named(server: Server, connect: Callable[..., Client], tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"absent\.onnx: No such file"):
        connect(server.address).put(tmp_path / "absent.onnx")


# Waiting


def test_those_who_wait_hold_up_nobody(farm: Farm, server: Server, connect: Callable[..., Client]) -> None:
    """More waiters than the server has threads."""
    revision = farm.progress("c@1").revision
    news: list[int] = []
    clients = [connect(server.address) for _ in range(24)]
    waiting = [threading.Thread(target=lambda c=c: news.append(c.progress("c@1", revision, 30.0).revision)) for c in clients]
    for thread in waiting:
        thread.start()
    control = connect(server.address)
    assert control.devices() == []
    control.submit([an_order("o1")])
    for thread in waiting:
        thread.join(30.0)
    assert news == [revision + 1] * 24


def test_only_what_changed_travels_and_in_parts(
    farm: Farm, link: FakeLink, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_servicer, "_PART_BYTES", 2000)
    monkeypatch.setattr(client_module, "_BATCH_BYTES", 10_000)
    control = connect(link.address)
    orders = [an_order(f"o{i}") for i in range(400)]
    control.submit(orders)
    before = link.carried
    seen = control.progress("c@1")
    assert [s.order for s in seen.orders] == orders
    whole, before = link.carried - before, link.carried
    control.cancel("c@1", ["o7"])
    after = control.progress("c@1", seen.revision)
    assert link.carried - before < whole / 20
    assert [s.order.id for s in after.orders if s.state is OrderState.CANCELLED] == ["o7"]
    assert after == farm.progress("c@1")


def test_what_grows_with_the_fleet_may_be_larger_than_a_message(
    tmp_path: Path, folder: RuntimeFolder, connect: Callable[..., Client]
) -> None:
    long, names = "x" * 30_000, [f"d{i:03}" for i in range(600)]
    store = SqlStore(":memory:")
    for name in names:
        store.save_device(a_device(name, name, note=long), 1)
        store.save_status(DeploymentStatus(f"id-{name}", name, "m", 1, DeploymentState.COMMITTED, reason=long))
    farm = Farm(store, ArtifactStore(tmp_path / "artifacts"))
    server = Server(farm, folder.address)
    control = connect(server.start())
    assert len(names) * len(long) > MESSAGE_BYTES
    assert [s.device.name for s in control.devices()] == names
    assert [s.device for s in control.deployments("m")] == names
    assert len(control.wait_for_deployments([f"id-{name}" for name in names], 0.0)) == len(names)
    run = control.open_run("c", "spec", "{}", "me", {})
    report = {"devices": [{"name": name, "reason": long} for name in names]}
    control.update_run(replace(run, state="done", report_digest=keep(report, control.put)))
    (run,) = control.runs("c")
    assert kept(run, connect(server.address).get) == report
    server.stop()
    store.close()


# Drivers


def test_one_driver_at_a_time(farm: Farm, server: Server, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_HEARTBEAT_S", 0.02)
    one, two = connect(server.address), connect(server.address)
    with one.driving("c"):
        with pytest.raises(Busy, match=rf"campaign 'c' is driven by another command already \(.*process {os.getpid()}"), two.driving("c"):
            pass
        with two.driving("another"):
            assert [h.name for h in farm.holds()] == ["another", "c"]
    with two.driving("c"):
        pass
    assert farm.holds() == []


def test_a_driver_that_was_taken_over_stops(
    farm: Farm, server: Server, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_HEARTBEAT_S", 0.02)
    control = connect(server.address)
    told = threading.Event()
    beat = control._beat
    monkeypatch.setattr(control, "_beat", lambda *arguments: (beat(*arguments), told.set()))
    with control.driving("c"):
        (hold,) = farm.holds()
        with farm._changed:  # no heartbeat comes between
            farm.leave("c", hold.holder)  # as if its time had passed
            farm.drive("c", "the other one")
        assert told.wait(30.0)
        for call in (control.devices, lambda: control.progress("c@1"), lambda: control.submit([an_order("o1")])):
            with pytest.raises(Busy, match="the other one"):
                call()
    assert [h.holder for h in farm.holds()] == ["the other one"]


def test_a_cancelled_run_stops_its_driver(farm: Farm, server: Server, connect: Callable[..., Client]) -> None:
    driver, other = connect(server.address), connect(server.address)
    device = FakeDevice(farm, a_device())
    device.attach()
    driver.submit([an_order("o1"), an_order("o2")])
    revision = driver.progress("c@1").revision
    told: list[BaseException] = []

    def wait() -> None:
        try:
            driver.progress("c@1", revision, 30.0)
        except RunCancelled as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert other.cancel_run("c@1").state == "cancelled"
    waiting.join(30.0)
    assert told
    run = other.runs("c")[0]
    assert (run.state, run.exit_code) == ("cancelled", 130)
    for call in (lambda: driver.update_run(replace(run, state="done")), lambda: driver.submit([an_order("o3")])):
        with pytest.raises(RunCancelled, match=r"run 'c@1' was cancelled by another command"):
            call()
    with pytest.raises(UserError, match="has ended already"):
        other.cancel_run("c@1")
    assert driver.open_run("c", "spec", "{}", "me", {}).name == "c@2"


# Who may


def _requests() -> dict[str, Any]:
    """An empty request for every method of the service."""
    methods = control_pb2.DESCRIPTOR.services_by_name["Control"].methods
    return {m.name: GetMessageClass(m.input_type)() for m in methods}


async def _statuses(farm: Farm, folder: RuntimeFolder, caller: Callable[[Any], Caller]) -> dict[str, str]:
    """What each method answers to an empty request: OK or the status."""
    server = grpc.aio.server()
    with ThreadPoolExecutor(4) as threads:
        control_pb2_grpc.add_ControlServicer_to_server(ControlServicer(farm, threads, caller), server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(folder.address)
        await server.start()
        found = {}
        async with grpc.aio.insecure_channel(folder.address) as channel:
            stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
            for name, request in _requests().items():
                try:
                    call = getattr(stub, name)(request, timeout=30)
                    if hasattr(call, "__aiter__"):
                        async for _ in call:
                            pass
                    else:
                        await call
                    found[name] = "OK"
                except grpc.aio.AioRpcError as error:
                    found[name] = error.code().name
        await server.stop(None)
    return found


@pytest.mark.parametrize("role", ["", "unknown", *ROLES])
def test_every_method_asks_for_its_role(farm: Farm, folder: RuntimeFolder, role: str) -> None:
    statuses = asyncio.run(_statuses(farm, folder, lambda _: Caller("user", "eve", role)))
    refused = {name for name, status in statuses.items() if status == "PERMISSION_DENIED"}
    rank = ROLES.index(role) if role in ROLES else -1
    assert refused == {name for name in statuses if ROLES.index(LEAST_ROLE[f"Control.{name}"]) > rank}
    assert "UNIMPLEMENTED" not in statuses.values()
    assert "INTERNAL" not in statuses.values()


def test_who_can_t_prove_who_it_is_gets_nothing(farm: Farm, folder: RuntimeFolder) -> None:
    def nobody(_: Any) -> Caller:
        raise Denied("no certificate was shown")

    assert set(asyncio.run(_statuses(farm, folder, nobody)).values()) == {"PERMISSION_DENIED"}


def test_the_owner_of_a_run_is_who_opened_it(farm: Farm, server: Server, connect: Callable[..., Client]) -> None:
    import getpass

    control = connect(server.address)
    assert control.open_run("mine", "spec", "{}", "somebody else", {"a": "b"}).owner == getpass.getuser()
    brief, whole = control.runs("mine", brief=True), control.runs("mine")
    assert (brief[0].spec, whole[0].spec, whole[0].labels) == ("", "{}", {"a": "b"})


def test_a_result_reaches_the_driver(farm: Farm, server: Server, connect: Callable[..., Client]) -> None:
    control = connect(server.address)
    device = FakeDevice(farm, a_device())
    device.attach()
    control.submit([an_order("o1", launches=(0,))])
    device.say(an_attempt("o1", 0))
    (status,) = control.progress("c@1").orders
    assert (status.state, status.attempts) == (OrderState.DONE, (an_attempt("o1", 0),))
    assert "runs" not in control.devices()[0].reason
