"""Recipes as users write them, and the plans they become."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefarm.errors import UserError
from optimizer import auto
from optimizer.passes import PASSES, load_pass
from optimizer.recipe import Plan, RecipeError, RecipeModel, Space, Step, alternatives, expand, parameters_in_full
from optimizer.source import Signature, TensorSpec

SPEC = (TensorSpec("x", "float32", (None, 3)),)
CONV = Signature(SPEC, SPEC, 17, "onnx", op_types={"Conv": 9, "Gemm": 1, "Add": 3}, weight_dtypes={"float32": 20})
ONNX = frozenset({"onnx"})
TEXT = Signature(SPEC, SPEC, 17, "onnx", op_types={"MatMul": 30, "Softmax": 6}, weight_dtypes={"float32": 20})


def names(plans: list[Plan]) -> list[str]:
    return [p.name for p in plans]


def test_choices_are_expanded() -> None:
    written = [
        {"name": "int8", "passes": [{"pass": "quantize_static", "calibration": ["minmax", "entropy"], "per_channel": [True, False]}]}
    ]
    plans = expand(written, Space(CONV, True), 40)
    assert names(plans) == ["int8-minmax-per_channel", "int8-minmax", "int8-entropy-per_channel", "int8-entropy"]
    assert plans[1].steps == (Step("quantize_static"),)
    assert dict(plans[2].steps[0].parameters) == {"calibration": "entropy", "per_channel": True}


def test_sequences_and_fixed_values() -> None:
    written = [
        RecipeModel(
            name="mine", passes=[{"pass": "graph"}, {"pass": "quantize_dynamic", "weight": "s8", "op_types": ["Conv", "MatMul,Gemm"]}]
        )
    ]
    plans = expand(written, Space(CONV, False), 40)
    assert names(plans) == ["mine-Conv", "mine-MatMul+Gemm"]
    assert [s.pass_name for s in plans[0].steps] == ["graph", "quantize_dynamic"]
    assert plans[0].family == "graph+quantize_dynamic"


@pytest.mark.parametrize(
    ("recipe", "place", "message"),
    [
        ({"name": "a", "passes": [{"pass": "quantise_static"}]}, "[0].passes[0].pass", "is 'quantize_static' meant?"),
        ({"name": "a", "passes": [{"pass": "prune"}]}, "[0].passes[0].pass", "there are graph, "),
        ({"name": "a", "passes": [{}]}, "[0].passes[0]", "names no pass"),
        ({"name": "a", "passes": [{"pass": "graph", "symplify": True}]}, "[0].passes[0].symplify", "is 'simplify' meant?"),
        ({"name": "a", "passes": [{"pass": "graph", "fold": "yes"}]}, "[0].passes[0].fold", "valid boolean"),
        ({"name": "a", "passes": [{"pass": "graph", "fold": []}]}, "[0].passes[0].fold", "empty list"),
        (
            {"name": "a", "passes": [{"pass": "quantize_static", "calibration": "minmaks"}]},
            "[0].passes[0].calibration",
            "is 'minmax' meant?",
        ),
        ({"name": "a", "passes": [{"pass": "quantize_static", "percentile": 10.0}]}, "[0].passes[0].percentile", "greater than 50"),
        ({"name": "a", "passes": []}, "[0].passes", "at least 1 item"),
        ({"passes": [{"pass": "graph"}]}, "[0].name", "is missing"),
        ({"name": "a", "passes": [{"pass": "graph"}], "pases": 1}, "[0].pases", "is 'passes' meant?"),
        ({"name": "no/slash", "passes": [{"pass": "graph"}]}, "[0].name", "match pattern"),
    ],
)
def test_mistakes_are_named(recipe: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        expand([recipe], Space(CONV, True), 40)
    assert caught.value.field == f"optimize.recipes{place}"
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_static_needs_calibration() -> None:
    with pytest.raises(UserError, match=r"needs samples: give data\.calibration"):
        expand([{"name": "a", "passes": [{"pass": "quantize_static"}]}], Space(CONV, False), 40)


def test_formats() -> None:
    tflite = Signature(SPEC, SPEC, 0, "tflite")
    with pytest.raises(UserError, match="graph reads onnx, the model is tflite"):
        expand([{"name": "a", "passes": [{"pass": "graph"}]}], Space(tflite, True), 40)


def test_neither_auto_nor_list() -> None:
    with pytest.raises(UserError, match="'best' is neither"):
        expand("best", Space(CONV, True), 40)  # type: ignore[arg-type]


def test_auto_for_convolutions() -> None:
    plans = expand("auto", Space(CONV, True, formats=ONNX), 40)
    assert names(plans)[:2] == ["int8-static", "int8-static-per-channel"]
    assert {"int8-static-conv", "int8-static-matmul", "int8-static-signed", "int8-dynamic", "graph", "fp16"} <= set(names(plans))
    assert len({p.key for p in plans}) == len(plans) == len(set(names(plans)))


def test_auto_puts_channels_first_for_depthwise() -> None:
    depthwise = Signature(SPEC, SPEC, 17, "onnx", op_types={"Conv": 9}, weight_dtypes={"float32": 9}, grouped_convolutions=4)
    plans = expand("auto", Space(depthwise, True), 40)
    assert names(plans)[0] == "int8-static-per-channel"
    assert not {"int8-static-conv", "int8-static-matmul", "int8-dynamic-matmul"} & set(names(plans))


def test_auto_puts_dynamic_first_for_matrix_products() -> None:
    assert names(expand("auto", Space(TEXT, True), 40))[0] == "int8-dynamic"


def test_auto_stores_weights_as_integers_where_most_is_matrix_products() -> None:
    def drafted(model: Signature) -> set[str]:
        return {n for n in names(expand("auto", Space(model, False, formats=ONNX), 40)) if "weights" in n}

    with_lookups = replace(TEXT, op_types={**TEXT.op_types, "Gather": 1})
    assert drafted(TEXT) == {"int8-weights", "int4-weights"}
    assert drafted(with_lookups) == {"int8-weights", "int4-weights", "int4-weights-lookups"}
    assert drafted(CONV) == set()
    assert drafted(replace(TEXT, weight_dtypes={"float16": 20})) == set()
    assert drafted(replace(TEXT, op_types={**TEXT.op_types, "MatMulInteger": 30})) == set()


@pytest.mark.parametrize(("model", "samples", "smooths"), [("norm", True, True), ("norm", False, False), ("plain", True, False)])
def test_auto_smooths_what_a_normalisation_scales(model: str, samples: bool, smooths: bool) -> None:
    signature = replace(TEXT, op_types={**TEXT.op_types, "LayerNormalization": 13}) if model == "norm" else TEXT
    plans = expand("auto", Space(signature, samples, formats=ONNX), 40)
    found = [[s.pass_name for s in p.steps] for p in plans if any(s.pass_name == "smooth" for s in p.steps)]
    assert found == ([["graph", "smooth", "quantize_static"]] if smooths else [])


@pytest.mark.parametrize(("train", "epochs"), [(60_000, 3.0), (3_500, 18.0), (20, 30.0)])
def test_auto_prunes_and_trains_at_last_where_there_are_samples(train: int, epochs: float) -> None:
    without, plans = (expand("auto", Space(CONV, True, formats=ONNX, train=n), 40) for n in (0, train))
    added = plans[len(without) :]
    assert plans[: len(without)] == without
    assert names(added) == [f"pruned{r}{end}" for r in (50, 30, 70) for end in ("-int8", "-int7", "")]
    assert {s.parameters.get("epochs", 3.0) for p in added for s in p.steps if s.pass_name == "prune_structured"} == {epochs}
    assert [s.pass_name for s in added[0].steps] == ["graph", "prune_structured", "quantize_static"]
    assert not any("int" in name for name in names(expand("auto", Space(CONV, False, formats=ONNX, train=train), 40)) if "pruned" in name)


def test_auto_trains_nothing_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "missing_tools", lambda used: ["torch"])
    assert expand("auto", Space(CONV, True, train=100), 40) == expand("auto", Space(CONV, True), 40)


def test_a_recipe_that_trains_needs_samples() -> None:
    written = [{"name": "a", "passes": [{"pass": "prune_structured", "ratio": [0.3, 0.5]}]}]
    assert names(expand(written, Space(CONV, False, train=10), 40)) == ["a-ratio0.3", "a-ratio0.5"]
    with pytest.raises(RecipeError, match=r"prune_structured trains: give data.train, with labels or without"):
        expand(written, Space(CONV, True), 40)


def test_auto_without_calibration() -> None:
    assert all(s.pass_name != "quantize_static" for p in expand("auto", Space(CONV, False), 40) for s in p.steps)
    assert expand("auto", Space(CONV, False), 40)


def test_auto_leaves_quantised_and_weightless_models_alone() -> None:
    quantised = Signature(SPEC, SPEC, 17, "onnx", op_types={"Conv": 9, "QuantizeLinear": 9}, weight_dtypes={"int8": 9, "float32": 9})
    assert names(expand("auto", Space(quantised, True, formats=ONNX), 40)) == ["graph", "fp16"]
    assert names(expand("auto", Space(Signature(SPEC, SPEC, 17, "onnx", op_types={"Tanh": 1}), True, formats=ONNX), 40)) == ["graph"]


@given(
    limit=st.integers(0, 30), convolutions=st.integers(0, 3), products=st.integers(0, 9), grouped=st.integers(0, 2), samples=st.booleans()
)
def test_auto_keeps_the_limit(limit: int, convolutions: int, products: int, grouped: int, samples: bool) -> None:
    facts = {"Conv": convolutions, "MatMul": products, "Add": 1}
    signature = Signature(SPEC, SPEC, 17, "onnx", op_types=facts, weight_dtypes={"float32": 1}, grouped_convolutions=grouped)
    everything, some = expand("auto", Space(signature, samples), 99), expand("auto", Space(signature, samples), limit)
    assert some == everything[:limit]
    assert len({p.key for p in everything}) == len(everything)


def test_keys_ignore_names_and_spelled_out_defaults() -> None:
    written = [
        {"name": "a", "passes": [{"pass": "quantize_dynamic"}]},
        {"name": "b", "passes": [{"pass": "quantize_dynamic", "weight": "u8", "per_channel": False}]},
    ]
    assert names(expand(written, Space(CONV, True), 40)) == ["a"]
    first, other = (Plan(n, (Step("graph", {"fold": f}),)) for n, f in (("a", True), ("a", False)))
    assert first.key != other.key
    assert Plan("z", first.steps).key == first.key


def test_parameters_in_full() -> None:
    assert parameters_in_full(Step("graph", {"fold": False})) == {"fold": False, "simplify": True}


def test_the_table_names_files() -> None:
    root = Path(__file__).parents[2]
    for name, dotted in PASSES.items():
        assert (root / f"{dotted.split(':')[0].replace('.', '/')}.py").is_file(), name


TFLITE = Signature(SPEC, SPEC, 3, "tflite", op_types={"CONV_2D": 2}, weight_dtypes={"float32": 2})
GIVEN = ((Step("alternative", {"file": "m.tflite", "digest": "sha256:0"}), TFLITE),)


BOTH = Space(CONV, True, GIVEN)


def test_auto_makes_what_some_device_runs() -> None:
    def made(*formats: str, space: Space = BOTH) -> set[str]:
        plans = expand("auto", replace(space, formats=frozenset(formats)), 99)
        return {s.pass_name for p in plans for s in p.steps}

    assert made("onnx") == {"graph", "quantize_static", "quantize_dynamic", "convert_float16"}
    assert made("tflite") == {"alternative", "quantize_tflite"}
    assert made("openvino") == {"to_openvino"}
    assert made("tflite", space=Space(CONV, True)) == set()
    assert made("tflite", "openvino", space=Space(TFLITE, True)) == {"quantize_tflite", "to_openvino"}
    assert made("openvino", space=Space(Signature(SPEC, SPEC, 11, "openvino"), True)) == set()


@given(
    limit=st.integers(0, 30),
    convolutions=st.integers(0, 3),
    products=st.integers(0, 9),
    samples=st.booleans(),
    formats=st.sets(st.sampled_from(["onnx", "tflite", "openvino"]), min_size=1),
)
def test_no_format_is_starved_by_a_budget(limit: int, convolutions: int, products: int, samples: bool, formats: set[str]) -> None:
    """Whatever a budget leaves, no format is two plans ahead of another one that has plans left."""
    facts = {"Conv": convolutions, "MatMul": products, "Add": 1}
    source = Signature(SPEC, SPEC, 17, "onnx", op_types=facts, weight_dtypes={"float32": 1})
    space = Space(source, samples, GIVEN, frozenset(formats))

    def counts(plans: list[Plan]) -> Counter[str]:
        return Counter(
            load_pass(p.steps[-1].pass_name).writes or ("tflite" if p.steps[0].pass_name == "alternative" else "onnx") for p in plans
        )

    everything, some = counts(expand("auto", space, 99)), counts(expand("auto", space, limit))
    assert set(everything) == formats
    waiting = [f for f in formats if some[f] < everything[f]]
    assert all(some[other] <= some[f] + 1 for f in waiting for other in formats)


def test_a_recipe_starts_from_what_its_first_pass_reads() -> None:
    recipes = [{"name": n, "passes": [{"pass": p}]} for n, p in (("a", "quantize_tflite"), ("b", "to_openvino"), ("c", "graph"))]
    plans = expand(recipes, Space(CONV, True, GIVEN), 40)
    assert [[s.pass_name for s in p.steps] for p in plans] == [["alternative", "quantize_tflite"], ["to_openvino"], ["graph"]]
    assert names(expand(recipes, Space(CONV, True, GIVEN, frozenset({"tflite"})), 40)) == ["a"]
    assert [p.name for p in alternatives(Space(CONV, True, GIVEN))] == ["tflite"]
    assert alternatives(Space(CONV, True, GIVEN, ONNX)) == []


@pytest.mark.parametrize(
    ("passes", "place", "message"),
    [
        (
            ["quantize_tflite"],
            "passes[0].pass",
            "quantize_tflite reads tflite, the model is onnx; give such a file under",
        ),
        (["to_openvino", "graph"], "passes[1].pass", "graph reads onnx, to_openvino gives it openvino"),
        (["alternative"], "passes[0].pass", "is no pass of a recipe; name the file under model.alternatives"),
    ],
)
def test_formats_that_do_not_follow(passes: list[str], place: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        expand([{"name": "a", "passes": [{"pass": p} for p in passes]}], Space(CONV, True), 40)
    assert caught.value.field == f"optimize.recipes[0].{place}"
    assert message in str(caught.value)


def test_a_pass_whose_library_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(load_pass("to_openvino")), "tools", ("no-such-distribution",))
    with pytest.raises(RecipeError, match=r"to_openvino needs: pip install 'edgefarm\[openvino\]'"):
        expand([{"name": "a", "passes": [{"pass": "to_openvino"}]}], Space(CONV, True), 40)


LITE = Signature(SPEC, SPEC, 3, "tflite", op_types={"CONV_2D": 9}, weight_dtypes={"float32": 20})
KERAS = Space(CONV, True, ((Step("alternative", {"file": "m.tflite", "digest": "sha256:1"}), LITE),), None, 400, "sha256:2")


def test_a_pass_on_the_original_is_given_its_digest_and_starts_from_what_it_became(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.recipe.missing_tools", lambda used: [])
    written = [{"name": "small", "passes": [{"pass": "tfmot", "sparsity": [0.5, 0.8], "quantize_aware": True}]}]
    plans = expand(written, KERAS, 9)
    assert names(plans) == ["small-sparsity0.5", "small-sparsity0.8"]
    assert [step.pass_name for step in plans[0].steps] == ["alternative", "tfmot"]
    assert plans[0].steps[1].parameters == {"sparsity": 0.5, "original": "sha256:2"}
    assert expand(written, replace(KERAS, formats=ONNX), 9) == []


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (replace(KERAS, original=""), {"clusters": 16}, "tfmot works on a Keras model: give one as model.path"),
        (replace(KERAS, train=0), {"clusters": 16}, "tfmot trains: give data.train"),
        (KERAS, {"quantize_aware": False}, "choose one or more of sparsity, two_of_four, clusters and quantize_aware"),
        (KERAS, {"clusters": 1}, "clusters: 1 leaves each layer one weight"),
        (KERAS, {"sparsity": 1.0}, "less than 1"),
    ],
)
def test_what_the_toolkit_cannot_do_is_told(space: Space, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.recipe.missing_tools", lambda used: [])
    with pytest.raises(RecipeError, match=message):
        expand([{"name": "small", "passes": [{"pass": "tfmot", **given}]}], space, 9)


def test_auto_trains_a_keras_model_for_integers_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.auto.missing_tools", lambda used: [])
    aware = {p.name: p for p in expand("auto", KERAS, 99)}["tflite-int8-aware"]
    assert aware.steps[-1] == Step("tfmot", {"original": "sha256:2"})
    for space in (replace(KERAS, original=""), replace(KERAS, train=0)):
        assert "tflite-int8-aware" not in names(expand("auto", space, 99))
