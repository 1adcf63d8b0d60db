"""Distributions that the intervals stand on.

Sources: the incomplete beta function by its continued fraction (Numerical Recipes, 3rd ed., 6.4); Student's t and the binomial from it.
"""

from __future__ import annotations

import math
from functools import lru_cache


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), tiny)
    result = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1.0 + coefficient * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + coefficient / c
            c = c if abs(c) > tiny else tiny
            step = c * d
            result *= step
        if abs(step - 1.0) < 1e-14:
            break
    return result


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's distribution with `degrees` of freedom."""
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError("confidence must lie in (0, 1) and degrees be positive")
    low, high = 0.0, 1.0
    while student_beyond(high, degrees) > 1 - confidence:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if student_beyond(middle, degrees) > 1 - confidence else (low, middle)
    return (low + high) / 2.0


def student_beyond(t: float, degrees: int) -> float:
    """P(|T| > `t`) of Student's distribution with `degrees` of freedom."""
    return incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k)."""
    return 1.0 if k >= n else incomplete_beta(n - k, k + 1, 1 - p)
