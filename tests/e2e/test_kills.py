"""`kill -9` of agents and of the command, anywhere: nothing is lost, done twice, half written or left behind."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefarm.digest import digest_file
from tests.e2e.command import Done
from tests.e2e.faults import WINNER, Campaign, write_campaign

RUNNER, PASS, METRIC = "agent.runner.child", "optimizer.fork_server", "user_metric_child.py"
PHASES: list[tuple[dict[str, Any], str, str]] = [
    ({"event": "pass", "kind": "started"}, PASS, "command"),
    ({"event": "stage", "stage": "screen"}, RUNNER, "command"),
    ({"event": "stage", "stage": "accuracy"}, RUNNER, "command"),
    ({"event": "stage", "stage": "compare"}, RUNNER, "command"),
    ({"event": "stage", "stage": "compare"}, RUNNER, "both"),
    ({"event": "stage", "stage": "memory"}, RUNNER, "command"),
    ({"event": "phase-started", "phase": "rollout"}, RUNNER, "command"),
]
KILLS, SEED = 25, 20


def is_won(campaign: Campaign, done: Done) -> list[str]:
    """The campaign ended well: on each device runs what must win there; returns the digests."""
    assert done.code == 0, done.stderr[-4000:]
    digests = []
    for device in done.document["devices"]:
        winner = device["winner"]
        assert winner["variant"].startswith(f"{WINNER}/")
        assert device["deployment"]["state"] == "committed"
        assert digest_file(Path(device["deployment"]["path"])) == winner["artifact"]["digest"]
        digests.append(winner["artifact"]["digest"])
    campaign.nothing_is_left()
    campaign.everything_is_whole()
    campaign.no_runtime_folder_is_left()
    return digests


def has_nothing_to_do(campaign: Campaign) -> None:
    before = campaign.begun()
    campaign.go_on()
    done = campaign.finish()
    assert done.code == 0, done.stderr[-4000:]
    assert done.document["summary"].startswith("nothing had to be done again")
    assert campaign.begun() == before


def at_work(campaign: Campaign, module: str) -> Callable[[], bool]:
    forked_from = 1 if module == PASS else 0  # a process that does no work by itself
    return lambda: len(campaign.children(module)) > forked_from


def test_a_killed_agent_is_started_again_and_told_only_what_remains(tmp_path: Path) -> None:
    campaign = write_campaign(tmp_path)
    campaign.go_on()
    assert campaign.until(lambda: any("/compare/" in order and index == 2 for order, index in campaign.begun()))
    round_ = campaign.begun()[-1][0]
    assert campaign.until(at_work(campaign, RUNNER))
    assert campaign.kill("agent") == "agent"
    is_won(campaign, campaign.finish())
    campaign.nothing_was_done_twice()
    assert {launch: n for launch, n in Counter(campaign.begun()).items() if n > 1} in ({(round_, 2): 2}, {(round_, 3): 2}, {})
    assert [index for order, index in campaign.begun() if order == round_ and index < 2] == [0, 1]
    has_nothing_to_do(campaign)


def test_the_command_is_killed_in_the_middle_of_every_phase_and_once_with_its_agent(tmp_path: Path) -> None:
    campaign = write_campaign(tmp_path)
    for phase, module, kind in PHASES:
        told = campaign.told(**phase)
        campaign.go_on()
        assert campaign.until(told), phase
        assert campaign.until(at_work(campaign, module)), phase
        assert campaign.kill(kind) == kind
        campaign.everything_is_whole()
    campaign.go_on()
    is_won(campaign, campaign.finish())
    campaign.nothing_was_done_twice()


def test_a_killed_command_takes_the_users_metric_along(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text("import threading\n\ndef score(outputs, targets):\n    threading.Event().wait()\n")
    campaign = write_campaign(tmp_path, {"function": "metric.py:score", "higher_is_better": True})
    campaign.go_on()
    assert campaign.until(lambda: any("/accuracy/" in order for order, _ in campaign.begun()))
    assert campaign.until(at_work(campaign, METRIC))
    assert campaign.kill("command") == "command"
    campaign.nothing_is_left()


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_at_random_moments(tmp_path: Path) -> None:
    """Campaigns of two devices of one class, one after the other, each cut again and again until it is done."""
    reference = write_campaign(tmp_path / "undisturbed", devices=2)
    reference.go_on()
    wanted = is_won(reference, reference.finish())
    chance, cuts, number = random.Random(SEED), Counter[str](), 0
    while cuts.total() < KILLS:
        number += 1
        campaign = write_campaign(tmp_path / f"cut-{number}", devices=2)
        while killed := cut(campaign, chance, reference.signs()):
            cuts[killed] += 1
            if campaign.rests:
                campaign.everything_is_whole()
        assert is_won(campaign, campaign.finish()) == wanted
        campaign.nothing_was_done_twice()
        print(f"campaign {number}: {len(campaign.snapshots)} kills, {campaign.repeated()} of {len(campaign.begun())} launches were cut")
        has_nothing_to_do(campaign)
    print(f"{cuts.total()} kills over {number} campaigns: {dict(cuts)}")
    assert set(cuts) == {"agent", "command", "both"}


def cut(campaign: Campaign, chance: random.Random, signs: int) -> str:
    """Kills something at a random moment of the progress; returns what, or nothing if the command was done before that."""
    campaign.go_on()
    kind, sign, pause_s = chance.choice(("agent", "command", "both")), chance.randrange(signs // 2), chance.random()
    told = campaign.signs() + sign
    if not (campaign.until(lambda: campaign.signs() >= told) and campaign.pause(pause_s)):
        return ""
    if kind == "agent" and campaign.lost_once():
        kind = "both"
    return campaign.kill(kind, chance.randrange(2))
