"""What other devices' results say of candidates that a device has not measured yet: what to measure next, never who wins. Pure.

A Gaussian process over candidates whose mean and covariance are learnt from the tables of other devices (each table one draw), as in
multi-task Bayesian optimisation with a free-form task kernel (Bonilla, Chai, Williams, NIPS 2007; Swersky, Snoek, Adams, NeurIPS 2013);
candidates are taken by the lower end of their prediction (Srinivas et al., ICML 2010). The problem, and about ten measurements as what a
new device should need, are those of HELP (Lee et al., NeurIPS 2021).

A table maps a candidate's key to the log of its latency on one device, relative to anything that is the same for the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = Mapping[str, float]

LEAST_TABLES = 3  # from which a spread can be taken
_OFFSET_SD = 5.0  # of a whole table: how fast a device is says nothing of its order
_SLOPE_SD = 0.5  # a device may stretch or squeeze the usual differences
_OWN_SD = 0.05  # of one candidate on one device, that no other device shows
_UNKNOWN_SD = 1.0  # of a candidate that no table has
_EAGER = 1.0  # standard deviations below the mean by which candidates are ranked
_SURELY = 4.0  # standard deviations: real tables have heavier tails than the process (5 % of predictions, not .5 %, were 2.6 too high)


@dataclass(frozen=True)
class Prediction:
    """Log latency of one candidate, relative as the known ones are, with its standard deviation."""

    mean: float
    sd: float


def predict(known: Table, tables: Sequence[Table], keys: Sequence[str], noise: float = 0.02) -> dict[str, Prediction]:
    """Predicts all `keys` on a device.

    Args:
        known: what was measured there; keys outside of `keys` are ignored.
        tables: other devices'; each may lack keys.
        noise: standard deviation of a measured log latency.
    """
    mean, covariance = _prior(tables, keys)
    at = [i for i, key in enumerate(keys) if key in known]
    if at:
        cross = covariance[:, at]
        inner = cross[at] + noise**2 * np.eye(len(at))
        residual = np.array([known[keys[i]] for i in at]) - mean[at]
        gain = np.linalg.solve(inner, np.column_stack([residual, cross.T]))
        mean = mean + cross @ gain[:, 0]
        variance = np.diag(covariance) - np.einsum("ij,ji->i", cross, gain[:, 1:])
    else:
        variance = np.diag(covariance)
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    return {key: Prediction(float(m), float(s)) for key, m, s in zip(keys, mean, deviation)}


def most_promising(known: Table, tables: Sequence[Table], keys: Sequence[str], count: int, noise: float = 0.02) -> list[str]:
    """Up to `count` of the keys that are not known, those first that may be the fastest.

    Each one after the first is chosen as if those before it had been measured as predicted, so that alike ones are not all taken.
    """
    assumed = dict(known)
    chosen: list[str] = []
    while len(chosen) < count and len(assumed) < len(set(assumed).union(keys)):
        predictions = predict(assumed, tables, keys, noise)
        best = min((k for k in keys if k not in assumed), key=lambda k: (predictions[k].mean - _EAGER * predictions[k].sd, k))
        chosen.append(best)
        assumed[best] = predictions[best].mean
    return chosen


def may_be_fastest(known: Table, tables: Sequence[Table], keys: Sequence[str], margin: float, noise: float = 0.02) -> list[str]:
    """Those of the keys that are not known and whose prediction does not rule out that they beat the fastest known by `margin`.

    With fewer than `LEAST_TABLES` tables a spread can't be told from chance: then all that are not known.
    """
    if not known:
        return list(keys)
    if len(tables) < LEAST_TABLES:
        return [k for k in keys if k not in known]
    predictions = predict(known, tables, keys, noise)
    best = min(known.values()) - np.log1p(margin)
    return [k for k in keys if k not in known and predictions[k].mean - _SURELY * predictions[k].sd < best]


def _prior(tables: Sequence[Table], keys: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance over `keys`. Tables are centred on their medians; what a table lacks is taken as the others' mean."""
    logs = np.array([[table.get(key, np.nan) for key in keys] for table in tables], dtype=np.float64).reshape(len(tables), len(keys))
    seen = ~np.isnan(logs)
    logs, seen = logs[seen.any(axis=1)], seen[seen.any(axis=1)]
    if not len(logs):
        return np.zeros(len(keys)), np.eye(len(keys)) * _UNKNOWN_SD**2 + _OFFSET_SD**2
    logs = logs - np.nanmedian(logs, axis=1, keepdims=True)
    counts = seen.sum(axis=0)
    mean = np.where(seen, logs, 0.0).sum(axis=0) / np.maximum(1, counts)
    residual = np.where(seen, logs - mean, 0.0)
    covariance = residual.T @ residual / max(1, len(logs) - 1)
    covariance += _SLOPE_SD**2 * np.outer(mean, mean) + np.diag(np.where(counts > 0, _OWN_SD, _UNKNOWN_SD) ** 2)
    return mean, covariance + _OFFSET_SD**2
