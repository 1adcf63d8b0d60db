"""Recipes (what users write, with choices) and plans (one sequence of passes with fixed parameters). Pure."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefarm.digest import canonical_json
from edgefarm.errors import UserError
from edgefarm.model import Scalar
from optimizer.auto import drafts
from optimizer.passes import ALTERNATIVE, WRITABLE, Pass, load_pass, missing_tools, remedy
from optimizer.source import Signature


@dataclass(frozen=True)
class Step:
    """One pass with fixed parameters; those at their default are left out, so that equal steps are equal values."""

    pass_name: str
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """16 hex digits that equal steps share."""
        return hashlib.sha256(canonical_json([self.pass_name, dict(self.parameters)])).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """A concrete sequence of passes. `choice` tells apart the plans of one recipe."""

    recipe: str
    steps: tuple[Step, ...]
    choice: str = ""

    @property
    def name(self) -> str:
        """Readable: `int8-static`, `int8-entropy-per_channel`."""
        return f"{self.recipe}-{self.choice}" if self.choice else self.recipe

    @property
    def key(self) -> str:
        """16 hex digits; plans with equal steps share it whatever their names."""
        return hashlib.sha256(canonical_json([s.key for s in self.steps])).hexdigest()[:16]

    @property
    def family(self) -> str:
        """Names of its passes, joined by +."""
        return "+".join(s.pass_name for s in self.steps)


class RecipeError(UserError):
    """A recipe that cannot be used. `field` is its place below `optimize.recipes`, e.g. `[0].passes[1].calibration`."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(f"optimize.recipes{place}: {message}")
        self.field = f"optimize.recipes{place}"
        self.message = message


class RecipeModel(BaseModel):
    """One entry of `optimize.recipes`: `{name: int8, passes: [{pass: quantize_static, calibration: [minmax, entropy]}]}`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    passes: list[dict[str, Any]] = Field(min_length=1)


Recipes = Union[Literal["auto"], Sequence[Union[RecipeModel, Mapping[str, Any]]]]


@dataclass(frozen=True)
class Space:
    """What plans may be made of.

    Attributes:
        alternatives: the step that takes in each of the user's other files, and what that file is.
        formats: those that some device runs; None = not known yet.
        train: number of samples to train with.
        original: digest of the file that the source was exported from; empty = it was not.
    """

    source: Signature
    has_calibration: bool
    alternatives: tuple[tuple[Step, Signature], ...] = ()
    formats: frozenset[str] | None = None
    train: int = 0
    original: str = ""

    def runs(self, model_format: str) -> bool:
        """Whether a result in that format is of use."""
        return self.formats is None or model_format in self.formats


def expand(recipes: Recipes, space: Space, limit: int) -> list[Plan]:
    """At most `limit` plans, best expectations first, no two with equal steps.

    Raises:
        RecipeError: an unknown pass, parameter or value (with the nearest name), or a pass that this model or data do not allow.
    """
    if isinstance(recipes, str):
        if recipes != "auto":
            raise RecipeError(f"{recipes!r} is neither 'auto' nor a list of recipes", "")
        plans: Iterable[Plan] = _auto(space)
    else:
        plans = itertools.chain.from_iterable(_expand_one(i, r, space) for i, r in enumerate(recipes))
    unique: dict[str, Plan] = {}
    for plan in plans:
        unique.setdefault(plan.key, plan)
        if len(unique) >= limit:
            break
    return list(unique.values())[: max(limit, 0)]


def alternatives(space: Space) -> list[Plan]:
    """A plan for each of the user's other files whose format some device runs; named by the format."""
    return [Plan(signature.format, (step,)) for step, signature in space.alternatives if space.runs(signature.format)]


def _auto(space: Space) -> Iterator[Plan]:
    """Drafts for the source and its alternatives whose results some device runs.

    Formats take turns, so that a budget that cuts the tail leaves every runtime its best ones.
    """
    starts: list[tuple[tuple[Step, ...], Signature]] = [((), space.source), *(((step,), s) for step, s in space.alternatives)]
    queues: dict[str, dict[str, Plan]] = {}
    for first, signature in starts:
        others = frozenset(s.format for _, s in space.alternatives) if not first else frozenset[str]()
        found = drafts(
            signature, space.has_calibration, space.train, alternative=bool(first), others=others, original=space.original
        )  # fmt: skip
        for draft in found:
            steps = tuple(_step(name, dict(parameters), "") for name, parameters in draft.steps)
            plan, written = Plan(draft.name, (*first, *steps)), _written(steps, signature.format)
            if space.runs(written):
                queues.setdefault(written, {}).setdefault(plan.key, plan)
    for turn in itertools.zip_longest(*(queue.values() for queue in queues.values())):
        yield from (plan for plan in turn if plan is not None)


def _written(steps: Sequence[Step], model_format: str) -> str:
    """The format at the end of some steps."""
    for step in steps:
        model_format = load_pass(step.pass_name).writes or model_format
    return model_format


def _expand_one(index: int, written: RecipeModel | Mapping[str, Any], space: Space) -> list[Plan]:
    place = f"[{index}]"
    try:
        recipe = written if isinstance(written, RecipeModel) else RecipeModel.model_validate(dict(written))
    except ValidationError as error:
        raise _translated(error, place, list(RecipeModel.model_fields)) from error
    places = [f"{place}.passes[{k}]" for k in range(len(recipe.passes))]
    used = [_pass(where, item) for where, item in zip(places, recipe.passes)]
    first, model_format = _start(places[0], used[0], space)
    for where, before, after in zip(places[1:], used, used[1:]):
        model_format = before.writes or model_format
        if model_format not in after.formats:
            given = f"{before.name} gives it {model_format}"
            raise RecipeError(f"{after.name} reads {', '.join(after.formats)}, {given}", f"{where}.pass")
    if not space.runs(used[-1].writes or model_format):
        return []
    steps = [_choices(where, each, item, space) for where, each, item in zip(places, used, recipe.passes)]
    plans = []
    for combination in itertools.product(*steps):
        choice = "-".join(text for _, text in combination if text)
        plans.append(Plan(recipe.name, (*first, *(step for step, _ in combination)), choice))
    return plans


def _pass(place: str, item: Mapping[str, Any]) -> Pass:
    if not isinstance(item.get("pass"), str):
        raise RecipeError(f"names no pass; write {{pass: NAME}} with one of {', '.join(WRITABLE)}", place)
    if item["pass"] == ALTERNATIVE:
        raise RecipeError("is no pass of a recipe; name the file under model.alternatives", f"{place}.pass")
    try:
        used = load_pass(item["pass"])
    except UserError as error:
        raise RecipeError(str(error), f"{place}.pass") from error
    if missing_tools(used):
        raise RecipeError(f"{used.name} needs: {remedy(used)}", f"{place}.pass")
    return used


def _start(place: str, used: Pass, space: Space) -> tuple[tuple[Step, ...], str]:
    """What the first pass is given: the source if it reads that, else the first alternative that it reads."""
    if space.source.format in used.formats:
        return (), space.source.format
    for step, signature in space.alternatives:
        if signature.format in used.formats:
            return (step,), signature.format
    there = " and ".join([f"the model is {space.source.format}", *(f"an alternative {s.format}" for _, s in space.alternatives)])
    raise RecipeError(f"{used.name} reads {', '.join(used.formats)}, {there}; give such a file under model.alternatives", f"{place}.pass")


def _choices(place: str, used: Pass, item: Mapping[str, Any], space: Space) -> list[tuple[Step, str]]:
    """Every combination of one pass's choices, with the text that tells it apart."""
    written = {name: value for name, value in item.items() if name != "pass"}
    options = {name: value if isinstance(value, list) else [value] for name, value in written.items()}
    if empty := [name for name, values in options.items() if not values]:
        raise RecipeError("is an empty list of choices", f"{place}.{empty[0]}")
    varied = [name for name, values in options.items() if len(values) > 1]
    result = []
    for values in itertools.product(*options.values()):
        parameters = dict(zip(options, values))
        needs = used.parameters.model_validate(_step(used.name, parameters, place).parameters)
        if needs.needs_original:
            if not space.original:
                raise RecipeError(f"{used.name} works on a Keras model: give one as model.path", f"{place}.pass")
            parameters["original"] = space.original
        step = _step(used.name, parameters, place)
        if needs.needs_calibration and not space.has_calibration:
            raise RecipeError(f"{used.name} needs samples: give data.calibration", f"{place}.pass")
        if needs.needs_training and not space.train:
            raise RecipeError(f"{used.name} trains: give data.train, with labels or without", f"{place}.pass")
        result.append((step, "-".join(filter(None, (_word(n, parameters[n]) for n in varied)))))
    return result


def _word(name: str, value: object) -> str:
    """`per_channel` for True, nothing for False, `percentile99.9` for numbers, words as they are."""
    if isinstance(value, bool):
        return name if value else ""
    if isinstance(value, (int, float)):
        return f"{name}{value}"
    return str(value).replace(",", "+").replace(" ", "") or f"all_{name}"


def _step(pass_name: str, parameters: dict[str, Any], place: str) -> Step:
    used = load_pass(pass_name)
    try:
        valid = used.parameters.model_validate(parameters)
    except ValidationError as error:
        raise _translated(error, place, list(used.parameters.model_fields), f"{pass_name}: ") from error
    return Step(pass_name, valid.model_dump(exclude_defaults=True))


def _translated(error: ValidationError, place: str, names: list[str], prefix: str = "") -> RecipeError:
    """The first complaint of pydantic as one sentence with a place."""
    first = max(error.errors(), key=lambda e: e["type"] == "extra_forbidden")  # a misspelt name is missing under its right one too
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), names, n=1)
        hint = f"is {near[0]!r} meant?" if near else f"there are {', '.join(names)}"
        return RecipeError(f"{prefix}unknown parameter {first['loc'][-1]!r}; {hint}", f"{place}{path}")
    if first["type"] == "missing":
        return RecipeError(f"{prefix}is missing", f"{place}{path}")
    allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(first["input"]), allowed, n=1)
    hint = f"; is {near[0]!r} meant?" if near else ""
    if first["type"] == "value_error":  # a pass's own rule about parameters that don't go together
        return RecipeError(f"{prefix}{first['ctx']['error']}", place)
    return RecipeError(f"{prefix}{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}{hint}", f"{place}{path}")


def varied(step: Step, **parameters: Scalar) -> Step:
    """The step with some of its parameters changed. Raises RecipeError for what its pass does not take."""
    return _step(step.pass_name, {**step.parameters, **parameters}, "")


def parameters_in_full(step: Step) -> dict[str, Scalar]:
    """A step's parameters with the defaults of today, for cache keys and lineage."""
    full: dict[str, Scalar] = load_pass(step.pass_name).parameters.model_validate(dict(step.parameters)).model_dump()
    return full
