"""Comparing over a running controller: each device of a class answers for itself, viewers may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import zoo
from tests.e2e.test_compare import MEASURE, WIDE
from tests.e2e.test_remote import DEVICES, FakeLab, fleet_of, running_lab

pytestmark = pytest.mark.long


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FakeLab]:
    with running_lab(tmp_path) as made:
        yield made


def test_both_devices_are_compared_each_by_itself(lab: FakeLab) -> None:
    fleet = fleet_of(lab, "compared")
    fleet.write_text(json.dumps({**json.loads(fleet.read_text()), "measure": MEASURE}))
    (fleet.parent / "wide").mkdir()
    heavier = zoo.dense(fleet.parent / "wide", width=WIDE)
    words = ("compare", str(heavier), str(fleet.parent / "model.onnx"), "--fleet", str(fleet), "--max-slowdown", "50%")
    done = lab.run("anna", *words)
    assert done.code == 0, done.stderr
    assert done.document["lost"] == {}
    assert [d["name"] for d in done.document["devices"]] == list(DEVICES)
    assert all(d["gates"]["slowdown"] == "within" for d in done.document["devices"])
    assert {r["run"] for r in lab.told("anna", "runs")["runs"]} == {done.document["run"]}
    refused = lab.run("vera", *words)
    assert (refused.code, refused.document["error"]["code"]) == (2, "denied")
