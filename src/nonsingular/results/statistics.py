"""statistics.py - intervals, areas under surfaces, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: a two-sided 95 % interval reaches Z standard errors to either side."""


def wilson(successes: NDArray[Any] | int, n: int, z: float = Z) -> tuple[NDArray[Any], NDArray[Any]]:
    """Wilson score interval of a proportion (default: 95 %).  Wilson 1927, doi:10.2307/2276774.

    >>> lo, hi = wilson(0, 10); float(lo), round(float(hi), 4)
    (0.0, 0.2775)
    """
    p = np.asarray(successes) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def volume(values: NDArray[Any], eps_w: Sequence[float], eps_x: Sequence[float]) -> float:
    """Mean of a surface over its grid by the trapezoid rule: in [0, 1] for an accuracy.

    values: (len(eps_w), len(eps_x)).  An axis of one point counts with weight 1.
    """
    w = volume_weights(eps_w, eps_x)
    return float((w * values).sum() / w.sum())


def volume_weights(eps_w: Sequence[float], eps_x: Sequence[float]) -> NDArray[Any]:
    """(len(eps_w), len(eps_x)) the weights of the trapezoid rule, up to a factor."""

    def weights(axis: Sequence[float]) -> NDArray[Any]:
        if len(axis) == 1:
            return np.ones(1)
        steps = np.diff(np.asarray(axis, dtype=float))
        return np.concatenate([[0], steps / 2]) + np.concatenate([steps / 2, [0]])

    return np.outer(weights(eps_w), weights(eps_x))


_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip


def student(df: int) -> float:
    """97.5 % quantile of Student's t: a table of three digits to 19 degrees of freedom, then the expansion of its quantile in Z.

    Abramowitz and Stegun, 26.7.5.  Records hold intervals made with these digits, and `nonsingular verify` compares them.

    >>> student(2), round(student(30), 3)
    (4.303, 2.042)
    """
    if df <= len(_T):
        return _T[df - 1]
    return Z + (Z**3 + Z) / (4 * df) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * df**2)


FLIPS = 10_000
"""Random sign flips in the permutation test of two areas."""


def half_width(values: Sequence[float]) -> float:
    """Half the two-sided 95 % t-interval of the mean; infinite for one value."""
    n = len(values)
    if n < 2:
        return math.inf
    mean = sum(values) / n
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return student(n - 1) * sd / math.sqrt(n)


def permutation(d: NDArray[np.float64], seed: int) -> float:
    """Two-sided p-value of a mean difference of 0: the share of random sign flips of `d` whose mean is as far from 0."""
    draw, seen, extreme = np.random.default_rng(seed), abs(d.sum()) * (1 - 1e-12), 0
    for _ in range(0, FLIPS, 500):
        signs = draw.integers(0, 2, (500, len(d)), dtype=np.int8) * 2.0 - 1
        extreme += int((np.abs(signs @ d) >= seen).sum())
    return (extreme + 1) / (FLIPS + 1)


def mcnemar(up: NDArray[np.int64], down: NDArray[np.int64]) -> NDArray[np.float64]:
    """p-values of McNemar's exact test, two-sided, from counts of discordant pairs in either direction.  McNemar 1947."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(1, int((up + down).max())) + 1)))])  # log k!
    p = np.ones(up.shape)
    for at in np.ndindex(up.shape):
        n, k = int(up[at] + down[at]), int(min(up[at], down[at]))
        j = np.arange(k + 1)
        p[at] = min(1.0, 2 * np.exp(logs[n] - logs[j] - logs[n - j] - n * np.log(2)).sum())
    return p


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values adjusted for all of these tests together.  Holm 1979."""
    order = p.reshape(-1).argsort()
    adjusted = np.maximum.accumulate(p.reshape(-1)[order] * np.arange(p.size, 0, -1))
    out = np.empty(p.size)
    out[order] = np.minimum(adjusted, 1.0)
    return out.reshape(p.shape)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion.  Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.

    Each end is the proportion at which so many successes, or more (fewer), have probability (1 - level) / 2; by bisection.

    >>> low, high = clopper_pearson(0, 10); low, round(high, 4)
    (0.0, 0.3085)
    """
    tail = (1 - level) / 2

    def end(holds: Callable[[float], bool]) -> float:
        """The largest p at which it holds; it holds at 0."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    low = 0.0 if successes == 0 else end(lambda p: binomial_tail(successes, n, p) < tail)
    high = 1.0 if successes == n else end(lambda p: 1 - binomial_tail(successes + 1, n, p) > tail)
    return low, high


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial X of n draws with probability p, summed from its smaller side."""
    if k <= 0 or p >= 1:
        return 1.0 if k <= n else 0.0
    if k > n or p <= 0:
        return 0.0

    def some(first: int, last: int) -> float:
        """P(first <= X <= last)."""
        logs = [
            math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) + j * math.log(p) + (n - j) * math.log1p(-p)
            for j in range(first, last + 1)
        ]
        return math.fsum(map(math.exp, logs))

    return min(1.0, some(k, n)) if k > n * p else max(0.0, 1 - some(0, k - 1))
