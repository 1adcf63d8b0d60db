"""What a runner may answer. A model is an untrusted program inside the runner, so its answers are claims: their form is checked here.

Numbers are in the range that they travel in, text can be stored and shown, and what was not asked for is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.runner.frames import PAYLOAD_LIMIT, Frame
from edgefarm.errors import ProtocolError
from edgefarm.model import Failure, FailureKind, Stage

_TEXT_LIMIT = 8000
# A runner says what went wrong with a model. Time, transfer and loss of the device are for others to tell.
_ITS_FAILURES = frozenset({
    FailureKind.UNSPECIFIED, FailureKind.LOAD, FailureKind.UNSUPPORTED_OP, FailureKind.IO_CHANGED, FailureKind.OOM, FailureKind.CRASH,
    FailureKind.NUMERIC, FailureKind.TRANSFER,
})  # fmt: skip
_CONTROLS = {c: "\ufffd" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


@dataclass(frozen=True)
class Each:
    """An object with any keys, whose values are alike."""

    shape: Any


def clean(text: str) -> str:
    """The end of `text`, without what a terminal would obey and without halves of characters, which have no UTF-8 form."""
    return text[-_TEXT_LIMIT:].encode("utf-8", "replace").decode().translate(_CONTROLS)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return clean(value)


def _whole(least: int, bits: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**bits:
            raise ValueError(f"is not a whole number from {least} up")
        return value

    return check


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**63:
        raise ValueError("is not a number above 0")
    return float(value)


def _span(value: Any) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _duration(value)


def _regime(value: Any) -> str:
    if not isinstance(value, str) or value not in _REGIMES:
        raise ValueError("is no regime")
    return value


def _scalar(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value if isinstance(value, bool) else _number(value)


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)) or not abs(value) < 2**63:
        raise ValueError("is not a number")
    return value


def _spec(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], list):
        raise ValueError("is not a name, a type and a shape")
    return [_text(value[0]), _text(value[1]), [None if axis is None else _count(axis) for axis in value[2]]]


def _mark(value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("is not a moment and a count")
    return [_count(value[0]), _count(value[1])]


def _operator(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 6:
        raise ValueError("is not an operator: name, kind, provider, time, calls, kernel")
    return [_text(value[0]), _text(value[1]), _text(value[2]), _span(value[3]), _small(value[4]), _text(value[5])]


_REGIMES = frozenset({"", "flat", "warm_up", "slowdown", "unsteady", "too_short", "overload"})
_count, _small, _some = _whole(0, 63), _whole(0, 32), _whole(1, 63)
_BATCH = {"batch_size": _small, "n": _count, "mean_ns": _span, "p50_ns": _count, "unavailable": _text}
_SUMMARY = {
    "n": _some, "mean_ns": _duration, "p50_ns": _some, "p90_ns": _some, "p99_ns": _some, "warmup_inferences": _small,
    "burst_p50_ns": [_some], "burst_min_ns": [_some], "disturbed": _count, "left_out": _count, "samples_per_s": _span,
    "batches": [_BATCH], "regime": _regime, "unsettled": _count,
}  # fmt: skip
# By request; see `requests.Bench.answers`.
SHAPES: dict[str, dict[str, Any]] = {
    "import": {"version": _text},
    "load": {"load_ns": _count, "chosen": Each(_text), "provider": _text, "resting": Each(_scalar), "inputs": [_spec], "outputs": [_spec]},
    "first": {"first_inference_ns": _count, "not_finite": _count, "samples": _count},
    "launch": {"contenders": Each(_SUMMARY)},
    "loadgen": {"result": _text, "reasons": [_text], "numbers": Each(_span)},
    "placement": {"placement": Each(_small)},
    "profile": {"operators": [_operator], "whole_ns": _span, "source": _text, "unavailable": _text},
    "memory": {"peak_rss_bytes": _count, "pss_bytes": _count, "private_bytes": _count, "model_file_bytes": _count},
    "spend": {"marks": [_mark]},
    "evaluate": {"n": _count},
    "golden_check": {},
    "probe": {"version": _text, "providers": Each(Each(_scalar))},
    "prove": {},
}


def checked(request: Mapping[str, Any], frame: Frame, stage: Stage) -> dict[str, Any] | Failure:
    """The body of an answer, or the failure that it tells. Raises ProtocolError if it is no answer to `request`."""
    told, body = frame.header.get("failure"), frame.header.get("ok")
    if told is not None:
        return _failure(told, stage)
    if not isinstance(body, dict):
        raise ProtocolError("neither an answer nor a failure")
    verb = request.get("do", "")
    if verb in SHAPES:
        body = _fit(body, SHAPES[verb], "the answer")
    if verb == "launch":
        if absent := set(request["keys"]) - set(body["contenders"]):
            raise ProtocolError(f"the answer lacks {', '.join(sorted(absent))}")
        _check_samples(frame.payload, request["keys"], batches=request["plan"]["kind"] == "offline")
    return body


def _check_samples(archive: bytes, keys: Sequence[str], *, batches: bool) -> None:
    """An npz with the samples of `keys` and nothing else, which does not swell when it is read."""
    wanted = {f"{key}{part}.npy" for key in keys for part in ("", ".disturbed", *([".batch"] if batches else []))}
    import zipfile  # late, as in the bench: an idle agent does without

    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as source:
            members = source.infolist()
            fits = {m.filename for m in members} == wanted and sum(m.file_size for m in members) <= PAYLOAD_LIMIT
            damaged = not fits or source.testzip() is not None
    except Exception as error:  # zipfile meets damage with errors of many kinds
        raise ProtocolError(f"no archive of samples: {error!r}") from error
    if damaged:
        raise ProtocolError(f"no archive of samples: {len(members)} members of {sum(m.file_size for m in members)} bytes")


def _failure(told: Any, stage: Stage) -> Failure:
    try:
        kind, detail = FailureKind(told["kind"]), _text(told["detail"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not a failure: {error!r}") from error
    if kind not in _ITS_FAILURES:
        raise ProtocolError(f"a runner does not tell {kind.value}")
    return Failure(kind, detail if detail.strip() else "the runner gave no reason", stage)


def _fit(value: Any, shape: Any, place: str) -> Any:
    if isinstance(shape, (dict, Each)):
        if not isinstance(value, dict):
            raise ProtocolError(f"{place} is not an object")
        if isinstance(shape, Each):
            return {clean(key): _fit(inner, shape.shape, f"{place}: {clean(key)}") for key, inner in value.items()}
        if absent := shape.keys() - value.keys():
            raise ProtocolError(f"{place} lacks {', '.join(sorted(absent))}")
        return {key: _fit(value[key], inner, f"{place}: {key}") for key, inner in shape.items()}
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise ProtocolError(f"{place} is not a list")
        return [_fit(inner, shape[0], place) for inner in value]
    try:
        return shape(value)
    except ValueError as error:
        raise ProtocolError(f"{place} {error}") from error
