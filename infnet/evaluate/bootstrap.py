"""User bootstrap: how far a metric, or a difference of two models, would move with other users.

Rows of one user are not independent, users are; so users are drawn, not rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

REPLICATES_AT_ONCE = 25
"""Bounds the memory of one block of weights."""

FEWEST_DEFINED = 0.95
"""An interval needs the metric to be defined in at least this share of the replicates."""

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """95 % percentile interval and standard deviation over the replicates."""

    low: float
    high: float
    sd: float


def user_weights(
    seed: int, first: int, count: int, num_users: int
) -> Float64[ndarray, "{count} {num_users}"]:
    """Times that each user is drawn in replicates `first` … `first + count − 1`: independent
    Poisson(1).

    Poisson draws stand for the multinomial ones of the textbook (the number of users then varies by
    1/√U, which the ratios cancel). Each replicate has its own stream, so weights do not depend on
    how replicates are grouped; they are the same for every model with the same users: differences
    of models are paired.
    """
    streams = (
        np.random.default_rng([seed, replicate]) for replicate in range(first, first + count)
    )
    # Poisson(1) by its distribution function on 16 bits: five times faster than rng.poisson.
    thresholds = np.floor(65536 * np.cumsum([_poisson(k) for k in range(8)])).astype(np.uint16)
    drawn = [stream.integers(0, 65536, num_users, dtype=np.uint16) for stream in streams]
    table = np.searchsorted(thresholds, np.arange(65536, dtype=np.uint16), side="right")
    return table.astype(np.float64)[np.stack(drawn)]


def _poisson(k: int) -> float:
    return float(np.exp(-1.0) / np.prod(np.arange(1, k + 1)))


def interval(replicates: Float64[ndarray, " R"], value: float) -> Interval | None:
    """Percentiles 2.5 and 97.5 of the replicates, moved by their bias so that their mean is
    `value`.

    The bias is nil for means and AUC. For ECE, which random variation can only raise, plain
    percentiles would lie above the value itself. None where the metric is undefined in over 5 % of
    the replicates, or there are fewer than 20.
    """
    defined = replicates[~np.isnan(replicates)]
    if defined.size < 20 or defined.size < FEWEST_DEFINED * replicates.size:
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(defined, [tail, 100 - tail]) + (value - defined.mean())
    return Interval(float(low), float(high), float(defined.std(ddof=1)))
