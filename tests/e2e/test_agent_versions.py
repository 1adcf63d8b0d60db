"""Agents of other versions under the real command: upgraded and gone back in the middle of a campaign, and too old for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefarm import __version__
from edgefarm.model import FEATURES, PROTOCOL
from tests.e2e.command import TIMEOUT_S
from tests.e2e.restarts import RestartedFarm
from tests.integration.other_versions import OtherVersion

DEVICES = ("a", "b")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[RestartedFarm]:
    with RestartedFarm(tmp_path / "farm") as made:
        made.add_agents(*DEVICES)
        made.log_in("anna", "operator")
        yield made


def test_a_campaign_goes_on_over_an_upgrade_and_the_way_back(farm: RestartedFarm, tmp_path: Path) -> None:
    newer = OtherVersion(tmp_path / "newer", "0.99.0", PROTOCOL + 2, (*FEATURES, "dreams"), further=True)
    driver = farm.drive("anna", farm.write_fleet("upgraded", DEVICES))
    changes = (("a", newer, "screen"), ("b", newer, "accuracy"), ("a", None, "compare"), ("b", None, "memory"))
    for name, version, stage in changes:
        farm.until(lambda s=stage: farm.under_way(s), driver)
        farm.change_agent(name, version)
    report = farm.ended(driver)
    (_,) = set(farm.is_won(report))
    farm.nothing_was_lost_or_done_twice(cuts=len(changes))
    farm.everything_is_whole()
    with farm.client() as client:
        assert {s.device.agent_version for s in client.devices()} == {__version__}


def test_devices_that_are_too_old_or_away_are_told_of_and_the_others_go_on(farm: RestartedFarm, tmp_path: Path) -> None:
    farm.add_agents("c")
    farm.until(lambda: farm.attached() == {*DEVICES, "c"})
    farm.change_agent("b", OtherVersion(tmp_path / "older", "0.0.1", 0))
    farm.stop_agent("c")
    fleet = farm.write_fleet("aged", (*DEVICES, "c"))
    driver = farm.drive("anna", fleet, "--until", "measure")
    out, error = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 4, error
    document = json.loads(out)
    reason = f"b: agent 0.0.1 speaks protocol 0, this controller ({__version__}) {PROTOCOL}: the agent is too old: upgrade it"
    assert reason in json.dumps(document)
    assert [d["name"] for d in document["devices"]] == [*DEVICES, "c"]
    assert "c: its connection is gone" in json.dumps(document)
    states = {d["name"]: d["state"] for d in farm.told("anna", "devices")["devices"]}
    assert (states["b"], states["c"]) == ("needs_upgrade", "lost")
