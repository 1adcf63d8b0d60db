"""The rules that follow what devices showed: what each proposes, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from optimizer.recipe import Plan, Step, varied
from optimizer.refinements import Proposal, Results, Seen, Tried, keep_layers_in_float, prune_otherwise

HERE, THERE = "bench-1", "pi-1, pi-2"
INT8 = Step("quantize_static", {"per_channel": True})


def seen(speedup: float, excess: float, where: str = HERE, trouble: str = "") -> Seen:
    return Seen(where, math.log(speedup), excess, "accuracy_drop", trouble)


def static(layers: int = 0) -> Plan:
    name = f"int8-static-float{layers}" if layers else "int8-static"
    return Plan(name, (Step("graph"), varied(INT8, float_layers=layers)))


def quantised(points: Mapping[int, Seen | tuple[Seen, ...] | None], leaders: Mapping[str, float] | None = None) -> Results:
    """Results of int8 plans by their float layers; None: the plan gave no variant. Leaders as speed-ups."""
    tried = [
        Tried(static(n), failed=found is None, seen=() if found is None else found if isinstance(found, tuple) else (found,))
        for n, found in points.items()
    ]
    return Results(tuple(tried), {k: math.log(v) for k, v in (leaders or {HERE: 1.0}).items()}, layers=20)


def layers_of(found: Iterable[Proposal]) -> list[int]:
    return [int(p.plan.steps[-1].parameters.get("float_layers", 0)) for p in found]


def test_a_fast_quantisation_that_breaks_the_accuracy_limit_gives_one_layer_back() -> None:
    (found,) = keep_layers_in_float(quantised({0: seen(2.0, 0.004)}))
    assert found.plan == static(1)
    assert found.plan.steps == (Step("graph"), Step("quantize_static", {"per_channel": True, "float_layers": 1}))
    assert found.reason == "int8-static breaks accuracy_drop by 0.004 on bench-1: 1 layer back to float"
    assert found.lead == pytest.approx(math.log(2.0))


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ({0: seen(2.0, 0.1), 1: seen(1.9, 0.05)}, [2]),
        ({0: seen(2.0, 0.1), 1: seen(1.9, 0.05), 2: seen(1.8, 0.04)}, [4]),
        ({0: seen(2.0, 0.1), 1: seen(1.9, 0.05), 2: seen(1.8, 0.04), 4: seen(1.7, 0.03), 8: seen(1.4, -0.1)}, [6]),
        ({0: seen(2.0, 0.1), 2: seen(1.8, 0.04), 4: seen(1.7, -0.03)}, [3]),
        ({0: seen(2.0, 0.1), 2: seen(1.8, 0.04), 3: seen(1.7, -0.03)}, []),
        ({0: seen(2.0, 0.1), 1: seen(1.9, -0.05)}, []),
        ({0: seen(2.0, 0.1), 1: None}, []),
        ({0: seen(2.0, -0.1)}, []),
        ({0: seen(2.0, 0.1, trouble="memory_mib 90 > 80")}, []),
        ({0: seen(2.0, 0.1), 16: seen(1.9, 0.1)}, []),  # there are 20 layers
    ],
)
def test_their_number_doubles_until_the_limit_holds_and_is_bisected(points: Mapping[int, Seen | None], wanted: list[int]) -> None:
    assert layers_of(keep_layers_in_float(quantised(points))) == wanted


def test_dynamic_integers_give_layers_back_too_where_samples_can_rank_them() -> None:
    dynamic = Plan("int8-dynamic", (Step("graph"), Step("quantize_dynamic", {"weight": "s8"})))
    results = Results((Tried(dynamic, seen=(seen(1.5, 0.01),)),), {HERE: 0.0}, layers=20)
    (found,) = keep_layers_in_float(results)
    assert found.plan.name == "int8-dynamic-float1"
    assert found.plan.steps[-1] == Step("quantize_dynamic", {"weight": "s8", "float_layers": 1})
    assert list(keep_layers_in_float(replace(results, samples=False))) == []


def test_it_stops_where_it_is_no_longer_faster_than_what_holds() -> None:
    points = {0: seen(2.0, 0.1), 1: seen(1.52, 0.05)}
    assert layers_of(keep_layers_in_float(quantised(points, {HERE: 1.45}))) == [2]
    assert layers_of(keep_layers_in_float(quantised(points, {HERE: 1.50}))) == [], "within the noise"
    assert layers_of(keep_layers_in_float(quantised({0: seen(1.01, 0.1)}))) == []


def test_fewer_layers_are_tried_only_as_long_as_they_may_be_faster() -> None:
    points = {0: seen(2.0, 0.1), 4: seen(1.8, 0.01), 8: seen(1.79, -0.1)}
    assert layers_of(keep_layers_in_float(quantised(points, {HERE: 1.79}))) == []
    assert layers_of(keep_layers_in_float(quantised(points, {HERE: 1.70}))) == [6]


def test_the_limit_is_to_hold_in_every_class_where_it_matters() -> None:
    points = {0: (seen(2.0, 0.1), seen(3.0, 0.2, THERE)), 1: (seen(1.9, -0.1), seen(2.9, 0.1, THERE))}
    found = list(keep_layers_in_float(quantised(points, {HERE: 1.9, THERE: 1.0})))
    assert layers_of(found) == [2]
    assert found[0].reason == "int8-static-float1 breaks accuracy_drop by 0.1 on pi-1, pi-2: 2 layers back to float"
    assert layers_of(keep_layers_in_float(quantised(points, {HERE: 1.9, THERE: 3.1}))) == [], "something else is faster there"


def pruned(ratio: float, int8: bool = False) -> Plan:
    steps = (Step("graph"), varied(Step("prune_structured"), ratio=ratio), *([INT8] if int8 else []))
    return Plan(f"pruned{100 * ratio:.0f}" + ("-int8" if int8 else ""), steps)


def ratios(points: Mapping[float, Seen | None], siblings: Mapping[float, Seen | None] | None = None, leader: float = 1.0) -> list[str]:
    """Names of what follows from float plans by ratio, and from their int8 siblings."""
    tried = [
        Tried(pruned(ratio, int8), failed=found is None, seen=() if found is None else (found,))
        for int8, family in ((False, points), (True, siblings or {}))
        for ratio, found in family.items()
    ]
    return sorted({p.plan.name for p in prune_otherwise(Results(tuple(tried), {HERE: math.log(leader)}))})


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ({0.5: seen(2, -0.1), 0.3: seen(1.5, -0.1), 0.7: seen(3, 0.1)}, ["pruned60"]),
        ({0.5: seen(2, -0.1), 0.6: seen(2.3, 0.01)}, ["pruned55"]),
        ({0.5: seen(2, -0.1), 0.55: seen(2.3, 0.01)}, []),
        ({0.5: seen(2, -0.1), 0.7: None}, ["pruned60"]),
        ({0.5: seen(2, -0.1), 0.7: Seen(HERE)}, []),  # it was not measured
        ({0.7: seen(2, -0.1)}, ["pruned80"]),
        ({0.85: seen(2, -0.1)}, ["pruned90"]),
        ({0.9: seen(2, -0.1)}, []),
        ({0.3: seen(2, 0.1), 0.5: seen(2, 0.1)}, ["pruned15"]),
        ({0.05: seen(2, 0.1)}, []),
        ({0.3: seen(2, -0.1), 0.5: seen(1.8, -0.1)}, []),  # taking out more does not pay here
        ({0.3: seen(2, -0.1), 0.5: seen(1.97, -0.1)}, ["pruned70"]),
    ],
)
def test_a_ratio_that_holds_becomes_bolder_and_one_that_does_not_milder(points: Mapping[float, Seen | None], wanted: list[str]) -> None:
    assert ratios(points) == wanted


def test_the_new_ratio_is_tried_as_its_siblings_were() -> None:
    found = ratios({0.5: seen(2, -0.1), 0.7: seen(3, 0.1)}, {0.5: seen(2.5, 0.1)}, leader=2.0)
    assert found == ["pruned25-int8", "pruned60", "pruned60-int8"]
    assert ratios({0.5: seen(2, -0.1), 0.7: seen(3, 0.1)}, {0.7: seen(1.9, 0.1)}, leader=2.0) == ["pruned60"], "the other can't lead"


def test_what_cannot_beat_the_leader_is_not_tried() -> None:
    points = {0.5: seen(2, -0.1), 0.7: seen(3, 0.1)}
    assert ratios(points, leader=2.9) == ["pruned60"]
    assert ratios(points, leader=2.95) == []
    most = 2 * (0.3 / 0.2) ** 2  # work falls as the square of what stays
    assert ratios({0.7: seen(2, -0.1)}, leader=most / 1.03) == ["pruned80"]
    assert ratios({0.7: seen(2, -0.1)}, leader=most / 1.01) == []


def test_plans_are_named_and_made_as_if_they_had_been_written() -> None:
    (found,) = prune_otherwise(Results((Tried(pruned(0.4), seen=(seen(2, 0.1),)),), {HERE: 0.0}))
    assert found.plan == pruned(0.2)
    assert found.reason == "pruned40 breaks accuracy_drop by 0.1 on bench-1: only 20% of the channels go"
    halves = Results((Tried(pruned(0.3), seen=(seen(1.5, -0.1),)), Tried(pruned(0.7), seen=(seen(3, 0.1),))), {HERE: 0.0})
    (found,) = prune_otherwise(halves)
    assert found.plan.key == Plan("written", (Step("graph"), Step("prune_structured"))).key, "a half is the pass's default"
