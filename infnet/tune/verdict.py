"""Which points can the data tell apart: differences to the best, by the spread over seeds.

Every finished point p is trained with the same seeds s. With y_ps = μ + point_p + seed_s + ε_ps
(randomised blocks; Fisher 1935) the residual variance pools the spread of all points, so that three
seeds give an interval that means something:

    σ² = Σ_ps (y_ps − ȳ_p − ȳ_s + ȳ)² / ((P − 1)(S − 1))
    best − p  ±  t(1 − α / 2(P − 1), (P − 1)(S − 1)) · σ √(2/S)        α = .05, Bonferroni

The interval covers other seeds and the choice of the best among P; it does not cover other users.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The best point minus another, positive where the best is better."""

    value: float
    low: float | None
    """95 % interval; None with one seed, whose spread is not known."""
    high: float | None

    @property
    def told(self) -> bool:
        """Whether the data can tell the two apart."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Verdict:
    """What the finished points say."""

    best: int
    """Index of the best."""
    means: list[float]
    deviations: list[float | None]
    """Over seeds (n − 1); None with one seed."""
    differences: list[Difference | None]
    """None for the best itself."""
    smallest: float | None
    """Smallest difference to the best that these seeds can tell from 0; None: not known."""


def judge(scores: Sequence[Sequence[float]], *, larger_is_better: bool) -> Verdict:
    """Compare the points, whose scores stand in the order of the seeds.

    Args:
        scores: one row per point, one value per seed, equally many in each.
        larger_is_better: the direction of the objective.

    Raises:
        ValueError: no point, or rows of different lengths.
    """
    if not scores or len({len(row) for row in scores}) != 1 or not len(scores[0]):
        raise ValueError(
            "scores must have a row per point and as many seeds in each, found rows of lengths "
            f"{[len(row) for row in scores]}"
        )
    table = np.asarray(scores, np.float64)
    means = table.mean(axis=1)
    best = int(np.argmax(means if larger_is_better else -means))
    half = _half_width(table)
    sign = 1.0 if larger_is_better else -1.0
    differences: list[Difference | None] = []
    for index, mean in enumerate(means):
        by = sign * float(means[best] - mean)
        interval = (None, None) if half is None else (by - half, by + half)
        differences.append(None if index == best else Difference(by, *interval))
    spread: list[float | None] = [None] * len(table)
    if table.shape[1] > 1:
        spread = [float(v) for v in table.std(axis=1, ddof=1)]
    return Verdict(best, [float(m) for m in means], spread, differences, half)


def _half_width(table: Float64[ndarray, "P S"]) -> float | None:
    points, seeds = table.shape
    if points < 2 or seeds < 2:
        return None
    by_point, by_seed = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    freedom = (points - 1) * (seeds - 1)
    variance = float(((table - by_point - by_seed + table.mean()) ** 2).sum()) / freedom
    tail = (1 - LEVEL) / (2 * (points - 1))
    return t_quantile(1 - tail, freedom) * math.sqrt(2 * variance / seeds)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Exact for 1 and 2 degrees of freedom, from 3 on by bisection of the distribution function,
    which for whole degrees is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4).

    Raises:
        ValueError: the probability is not inside (.5, 1), or there is no degree of freedom.
    """
    if not 0.5 < probability < 1 or freedom < 1:
        raise ValueError(
            f"probability must be in (.5, 1) and freedom at least 1, found {probability} and "
            f"{freedom}"
        )
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    excess = 2 * probability - 1
    if freedom == 2:
        return excess * math.sqrt(2 / (1 - excess**2))
    low, high = 0.0, max(4.0, 4 * NormalDist().inv_cdf(probability))
    while _within(high, freedom) < excess:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < excess else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(−t < T < t)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return (2 / math.pi) * (angle + sine * total) if odd else sine * total


def pareto(rows: Sequence[Sequence[float]], larger_is_better: Sequence[bool]) -> list[int]:
    """Indices of the rows that no other row beats: better in one objective, worse in none.

    Args:
        rows: the objectives of every point.
        larger_is_better: the direction of each objective.
    """
    signs = [1.0 if better else -1.0 for better in larger_is_better]
    signed = [[s * v for s, v in zip(signs, row, strict=True)] for row in rows]

    def beaten(row: list[float]) -> bool:
        return any(
            all(a >= b for a, b in zip(other, row, strict=True)) and other != row
            for other in signed
        )

    return [index for index, row in enumerate(signed) if not beaten(row)]
