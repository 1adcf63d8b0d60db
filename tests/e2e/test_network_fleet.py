"""A fleet off the machine: controller, driver and devices on hosts of their own, over links that are far, lossy, slow, hidden or cut."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefarm.digest import digest_file
from edgefarm.model import CHUNK_BYTES
from tests.e2e.command import TIMEOUT_S, Done
from tests.e2e.network import NAME, PORTS, Network, require
from tests.e2e.network_fleet import DELAY_S, DEVICES, MATES, WINNER, NetworkFleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
RATE = 10**6  # bytes per second of the slow link
CUT_S = 60.0
_HANDSHAKE = """
import socket, ssl, sys, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as raw:
    began = time.monotonic()
    context.wrap_socket(raw)
    print(time.monotonic() - began)
"""
_SEND = f"""
import socket
with socket.create_server(("0.0.0.0", 9000)) as door:
    print("ready", flush=True)
    door.accept()[0].sendall(bytes({2 * RATE}))
"""
_TAKE = """
import socket, sys, time
began, count = time.monotonic(), 0
with socket.create_connection((sys.argv[1], 9000)) as raw:
    while block := raw.recv(65536):
        count += len(block)
print(count / (time.monotonic() - began))
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkFleet]:
    require()
    with Network() as network:
        made = NetworkFleet(network, tmp_path_factory.mktemp("net"))
        network.limit_rate(made.devices["slow"], RATE)
        network.lose(made.devices["lossy"], 2)
        made.serve()
        with contextlib.closing(made):
            made.join()
            yield made


def is_won(done: Done, *devices: str) -> dict[str, Any]:
    """The run ended well: on each device runs its winner; returns the report's devices by name."""
    assert done.code == 0, done.stderr[-4000:]
    found = {device["name"]: device for device in done.document["devices"]}
    assert set(found) == set(devices)
    for device in found.values():
        winner = device["winner"]
        assert winner["variant"].startswith(f"{WINNER}/")
        assert device["deployment"]["state"] == "committed"
        assert digest_file(Path(device["deployment"]["path"])) == winner["artifact"]["digest"]
    return found


def test_a_run_over_four_kinds_of_links(fleet: NetworkFleet) -> None:
    began = time.monotonic()
    dropped = fleet.network.dropped()
    campaign = fleet.deploy("links", *DEVICES)
    devices = is_won(campaign.finish(), *DEVICES)
    print(f"the run took {time.monotonic() - began:.0f} s, {fleet.network.dropped() - dropped} packets were lost")
    assert len({device["class"] for device in devices.values()}) == 3
    assert fleet.network.dropped() > dropped


def test_each_link_is_what_it_is_called(fleet: NetworkFleet) -> None:
    seen = fleet.controller.run("ss", "-tnH", "state", "established")
    gateway, hidden = fleet.network.hosts["gateway"], fleet.devices["hidden"]
    assert f"[::ffff:{gateway.address}]" in seen
    assert hidden.address not in seen
    assert fleet.devices["far"].address not in seen
    handshake_s = float(fleet.devices["far"].run(sys.executable, "-c", _HANDSHAKE, NAME, str(PORTS[0])))
    print(f"a TLS handshake over the far link took {handshake_s:.3f} s")
    assert handshake_s > 2 * DELAY_S, "a round trip at least"
    sending = fleet.network.start(fleet.controller, sys.executable, "-c", _SEND, stdout=subprocess.PIPE)
    assert sending.stdout is not None
    assert sending.stdout.readline() == "ready\n"
    rate = float(fleet.devices["slow"].run(sys.executable, "-c", _TAKE, NAME))
    print(f"the slow link took {rate / 1e6:.2f} MB/s")
    assert rate < 1.1 * RATE


def test_a_link_is_cut_in_the_middle_of_a_transfer(fleet: NetworkFleet) -> None:
    device = fleet.devices["slow"]
    before, cached, begun = fleet.transferred("slow"), fleet.cache("slow"), fleet.network.received(device)
    campaign = fleet.deploy("transfer", "slow")

    def underway() -> str:
        """The partial file of which most is there: another one may have been begun, for the next order."""
        parts = {name: size for name, size in fleet.cache("slow").items() if name.endswith(".part")}
        return max(parts, key=parts.__getitem__) if max(parts.values(), default=0) > CHUNK_BYTES else ""

    campaign.until(lambda: bool(underway()), "a part of the model has arrived")
    with fleet.network.cut(device):
        part = underway()
        campaign.pause(CUT_S)
        arrived = fleet.cache("slow")[part]
        assert not fleet.begun("transfer"), "it was cut before anything could be measured"
    mended, sizes = time.monotonic(), []

    def whole() -> bool:
        here = fleet.cache("slow")
        sizes.append(here.get(part, arrived))
        return part not in here

    campaign.until(whole, "the model has arrived")
    took_s, wire = time.monotonic() - mended, fleet.network.received(device) - begun
    fetched = fleet.transferred("slow")["fetch"] - before["fetch"]
    print(f"cut with {arrived} of {fleet.cache('slow')[part.removesuffix('.part')]} bytes, whole {took_s:.1f} s after the link was mended")
    print(f"{wire} bytes came down the link, headers and all, for {fetched} that were used")
    assert min(sizes) == arrived, "it went on where it broke"
    assert wire <= 1.1 * fetched + CHUNK_BYTES, "one chunk was underway, besides a tenth for headers"
    is_won(campaign.finish(), "slow")
    after, new = fleet.transferred("slow"), sum(fleet.cache("slow").values()) - sum(cached.values())
    again = after["fetch"] - before["fetch"] - (new - (after["push"] - before["push"]))
    print(f"{again} bytes were kept, and fetched again")
    assert 0 <= again <= CHUNK_BYTES


def test_a_link_is_cut_in_the_middle_of_a_round(fleet: NetworkFleet) -> None:
    campaign = fleet.deploy("round", *DEVICES)
    others = set(DEVICES) - set(MATES)

    def measuring() -> list[str]:
        return [d for d in MATES if any("/compare/" in order and index >= 1 for order, index in fleet.begun_on(d, "round"))]

    campaign.until(lambda: bool(measuring()), "a round is being measured")
    (device,) = measuring()
    cut, elsewhere = time.monotonic(), sum(len(fleet.begun_on(d, "round")) for d in others)
    with fleet.watched(device) as watch:
        with fleet.network.cut(fleet.devices[device]):
            campaign.pause(CUT_S)
        mended = time.monotonic()
        lost, back = watch.wait(lambda state: state == "lost", cut), watch.wait(lambda state: state != "lost", mended)
    print(f"{device}: lost {lost.moment - cut:.1f} s after the cut ({lost.reason}), back {back.moment - mended:.1f} s after it was mended")
    elsewhere = sum(len(fleet.begun_on(d, "round")) for d in others) - elsewhere
    is_won(campaign.finish(), *DEVICES)
    twice = fleet.begun("round")
    repeated = twice.total() - len(twice)
    print(f"{repeated} of {twice.total()} launches began twice; {elsewhere} began elsewhere from the cut on")
    assert repeated <= 1, [launch for launch, count in twice.items() if count > 1]
    assert elsewhere > 0


def test_the_drivers_link_is_cut(fleet: NetworkFleet) -> None:
    campaign = fleet.deploy("driver", "lossy", "hidden")
    campaign.until(lambda: any("/compare/" in order for order, _ in fleet.begun("driver")), "a round is being measured")
    began = time.monotonic()
    with fleet.network.cut(fleet.driver):
        campaign.pause(CUT_S)
        (run,) = [r for r in fleet.asked("runs")["runs"] if r["run"] == "driver@1"]
        assert run["state"] == "waiting_for_driver"
    mended = time.monotonic()
    is_won(campaign.finish(), "lossy", "hidden")
    print(f"the run ended {time.monotonic() - mended:.0f} s after its driver's link was mended; {mended - began:.0f} s cut")
    assert max(fleet.begun("driver").values()) == 1


def test_a_gateway_gets_another_address(fleet: NetworkFleet) -> None:
    moved, address = time.monotonic(), fleet.network.move(fleet.network.hosts["gateway"])
    with fleet.watched("hidden") as watch:
        while f"[::ffff:{address}]" not in fleet.controller.run("ss", "-tnH", "state", "established"):
            assert time.monotonic() - moved < TIMEOUT_S
        print(f"the device behind it was back after {time.monotonic() - moved:.1f} s, and was {[s.state for s in watch.seen]}")
    is_won(fleet.deploy("rerouted", "hidden").finish(), "hidden")


def test_the_controllers_address_changes_behind_its_name(fleet: NetworkFleet) -> None:
    with contextlib.ExitStack() as watching:
        watches = {name: watching.enter_context(fleet.watched(name)) for name in DEVICES}
        moved = time.monotonic()
        fleet.controller_is_at(fleet.network.move(fleet.controller))
        for name, watch in watches.items():
            lost = watch.wait(lambda state: state == "lost", moved)
            back = watch.wait(lambda state: state == "ready", lost.moment)
            print(f"{name}: lost after {lost.moment - moved:.1f} s, back after {back.moment - moved:.1f} s")
    is_won(fleet.deploy("moved", "hidden").finish(), "hidden")
    assert max(fleet.begun("moved").values()) == 1
