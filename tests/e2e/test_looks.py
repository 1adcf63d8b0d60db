"""The search listens to the device: integers break the accuracy limit there, and a mixed precision of the second look wins."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgefarm.model import Verdict
from tests import zoo
from tests.e2e.command import deploy
from tests.e2e.faults import Campaign
from tests.e2e.zoo_fleets import write_fleet

EXTREME = 1000.0  # so much larger is one channel of the input: no 8 bits hold it beside the others
ROOMY = {"accept": [v.value for v in Verdict], "budget": {"minutes_per_device": 3}}
RUNNER = "agent.runner.child"


def write_extreme(folder: Path, recipes: Any = "auto") -> Campaign:
    """Convolutions that int8 makes faster; the first one can't be int8, since its input's channels differ by their ranges."""
    path = zoo.convolution(folder, channels=64)
    model = onnx.load(path)
    _drop_head(model.graph)
    onnx.save(model, path)
    fleet = write_fleet(folder, path, name="kills", drop=0.01)
    kernel = next(t for t in model.graph.initializer if t.name == "k1")
    values = numpy_helper.to_array(kernel).copy()
    values[:, 0] /= EXTREME  # the network answers to the larger inputs as it did to the others
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    onnx.save(model, path)
    for file in (folder / "calibration.npz", folder / "evaluation.npz"):
        with np.load(file) as samples:
            arrays = dict(samples)
        arrays["x"][:, 0] *= EXTREME
        np.savez(file, allow_pickle=False, **arrays)
    document = json.loads(fleet.read_text())
    document["optimize"] = {"recipes": recipes}
    document["measure"] = ROOMY
    fleet.write_text(json.dumps(document))
    return Campaign(fleet, ["bench-1"])


def _drop_head(graph: onnx.GraphProto) -> None:
    """Leaves the convolutions and their mean: float32[N, 128, 1, 1]. A matrix product would double the plans to try."""
    *kept, _, _ = list(graph.node)
    weights = [t for t in graph.initializer if t.name.startswith("k")]
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    graph.output.append(zoo._value("p", ["N", 128, 1, 1]))


def winner_of(document: dict[str, Any]) -> dict[str, Any]:
    (device,) = document["devices"]
    assert device["deployment"]["state"] == "committed"
    found = device["winner"]
    assert isinstance(found, dict)
    return found


def second_look(campaign: Campaign, **fields: Any) -> Callable[[], bool]:
    """Whether the present command told an event with these fields after its second look began."""
    since = len(campaign.events())

    def told() -> bool:
        events = campaign.events()[since:]
        at = next((i for i, e in enumerate(events) if e["event"] == "look"), len(events))
        return any(fields.items() <= event.items() for event in events[at:])

    return told


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_search_that_is_killed_in_its_second_look_goes_on_and_its_mixed_precision_wins(tmp_path: Path) -> None:
    campaign = write_extreme(tmp_path)
    for fields, module in (({"event": "pass", "kind": "started"}, ""), ({"event": "stage", "stage": "compare"}, RUNNER)):
        told = second_look(campaign, **fields)
        campaign.go_on()
        assert campaign.until(told), fields
        assert campaign.until(lambda module=module: not module or bool(campaign.children(module)))
        assert campaign.kill("command") == "command"
        campaign.everything_is_whole()
    begun = len(campaign.begun())
    campaign.go_on()
    done = campaign.finish()
    assert done.code == 0, done.stderr[-4000:]
    winner = winner_of(done.document)
    last = winner["lineage"][-1]
    assert (last["pass"], last["parameters"]["float_layers"]) == ("quantize_static", 1)
    assert "left in float, most harmful first: conv1" in last["changed"]
    plain = [c for c in done.document["devices"][0]["candidates"] if c["variant"].startswith("int8-static/")]
    assert [c["rejected"].split()[0] for c in plain] == ["accuracy_drop"]
    assert "the search ended after 2 looks: the results suggest nothing more" in done.document["notes"]
    # Each command looked again, at the same evidence.
    *looks, end = [e for e in campaign.events() if e["event"] == "look"]
    assert [e["number"] for e in looks] == [2, 2, 2]
    assert looks[0]["proposals"] == looks[1]["proposals"] == looks[2]["proposals"]
    assert looks[0]["proposals"][0]["reason"].endswith("on bench-1: 1 layer back to float")
    assert (end["number"], end["proposals"]) == (2, [])
    # Nothing was done twice.
    ended = [e for e in campaign.events() if e["event"] == "pass" and e["kind"] not in ("started", "working") and not e["cached"]]
    assert max(Counter((e["plan"], e["passed"]) for e in ended).values()) == 1
    assert not campaign.snapshots[-1].launches & set(campaign.begun()[begun:])
    assert max(Counter(campaign.begun()).values()) <= 1 + len(campaign.snapshots)
    assert campaign.repeated() <= len(campaign.snapshots)
    begun = len(campaign.begun())
    campaign.go_on()
    done = campaign.finish()
    assert done.document["summary"].startswith("nothing had to be done again")
    assert len(campaign.begun()) == begun


def test_what_users_wrote_is_all_that_is_tried(tmp_path: Path) -> None:
    campaign = write_extreme(tmp_path, [{"name": "int8", "passes": [{"pass": "quantize_static"}]}])
    document = deploy(campaign.fleet)
    assert winner_of(document)["variant"] == "source"
    (rejected,) = [c["rejected"] for c in document["devices"][0]["candidates"] if c["rejected"]]
    assert rejected.startswith("accuracy_drop")
    assert not [n for n in document["notes"] if "the search" in n]
