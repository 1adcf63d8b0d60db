"""Recipes (what users write, with choices) and plans (one sequence of passes with fixed parameters). Pure."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefarm.digest import canonical_json
from edgefarm.errors import UserError
from edgefarm.model import Scalar
from optimizer.auto import Draft, drafts
from optimizer.passes import PASSES, load_pass
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


def expand(recipes: Recipes, signature: Signature, has_calibration: bool, limit: int) -> list[Plan]:
    """At most `limit` plans, best expectations first, no two with equal steps.

    Raises:
        RecipeError: an unknown pass, parameter or value (with the nearest name), or a pass that this model or data do not allow.
    """
    if isinstance(recipes, str):
        if recipes != "auto":
            raise RecipeError(f"{recipes!r} is neither 'auto' nor a list of recipes", "")
        plans: Iterable[Plan] = (_drafted(d) for d in drafts(signature, has_calibration))
    else:
        plans = itertools.chain.from_iterable(_expand_one(i, r, signature, has_calibration) for i, r in enumerate(recipes))
    unique: dict[str, Plan] = {}
    for plan in plans:
        unique.setdefault(plan.key, plan)
        if len(unique) >= limit:
            break
    return list(unique.values())[: max(limit, 0)]


def _drafted(draft: Draft) -> Plan:
    steps = (_step(name, dict(parameters), "") for name, parameters in draft.steps)
    return Plan(draft.name, tuple(steps))


def _expand_one(index: int, written: RecipeModel | Mapping[str, Any], signature: Signature, has_calibration: bool) -> list[Plan]:
    place = f"[{index}]"
    try:
        recipe = written if isinstance(written, RecipeModel) else RecipeModel.model_validate(dict(written))
    except ValidationError as error:
        raise _translated(error, place, list(RecipeModel.model_fields)) from error
    steps = [_choices(f"{place}.passes[{k}]", item, signature, has_calibration) for k, item in enumerate(recipe.passes)]
    plans = []
    for combination in itertools.product(*steps):
        choice = "-".join(text for _, text in combination if text)
        plans.append(Plan(recipe.name, tuple(step for step, _ in combination), choice))
    return plans


def _choices(place: str, item: Mapping[str, Any], signature: Signature, has_calibration: bool) -> list[tuple[Step, str]]:
    """Every combination of one pass's choices, with the text that tells it apart."""
    if not isinstance(item.get("pass"), str):
        raise RecipeError(f"names no pass; write {{pass: NAME}} with one of {', '.join(PASSES)}", place)
    try:
        used = load_pass(item["pass"])
    except UserError as error:
        raise RecipeError(str(error), f"{place}.pass") from error
    if signature.format not in used.formats:
        raise RecipeError(f"{used.name} reads {', '.join(used.formats)}, the model is {signature.format}", f"{place}.pass")
    if used.needs_calibration and not has_calibration:
        raise RecipeError(f"{used.name} needs samples: give data.calibration", f"{place}.pass")
    written = {name: value for name, value in item.items() if name != "pass"}
    options = {name: value if isinstance(value, list) else [value] for name, value in written.items()}
    if empty := [name for name, values in options.items() if not values]:
        raise RecipeError("is an empty list of choices", f"{place}.{empty[0]}")
    varied = [name for name, values in options.items() if len(values) > 1]
    result = []
    for values in itertools.product(*options.values()):
        parameters = dict(zip(options, values))
        result.append((_step(used.name, parameters, place), "-".join(filter(None, (_word(n, parameters[n]) for n in varied)))))
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
    return RecipeError(f"{prefix}{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}{hint}", f"{place}{path}")


def parameters_in_full(step: Step) -> dict[str, Scalar]:
    """A step's parameters with the defaults of today, for cache keys and lineage."""
    full: dict[str, Scalar] = load_pass(step.pass_name).parameters.model_validate(dict(step.parameters)).model_dump()
    return full
