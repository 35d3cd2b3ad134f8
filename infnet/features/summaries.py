"""Bounded summaries of a number that merge to the same bits however the rows were grouped.

`moments` holds exact sums (integers, no rounding), so mean and variance are rounded once, at the
end; no order of merging can change them, and no cancellation occurs (what Chan et al. 1979 bound,
this avoids). `sample` holds the rows with the smallest hashes of their row ids (bottom-k sampling,
Cohen and Kaplan 2007): a uniform sample without replacement that depends on the set of rows alone.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from infnet.features.hashing import mix
from rayrun.config import Json

SAMPLE_ROWS = 8192
"""Rows kept for quantiles: the rank of quantile q is off by √(q(1−q)/8192) ≤ 0.6 % (one σ)."""

_LOW = (1 << 26) - 1


def moments(values: np.ndarray) -> Json:
    """Count, exact sum, exact sum of squares, minimum, maximum of the values that are not NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {"count": 0, "sum": "0", "squares": "0", "min": None, "max": None}
    fraction, exponent = np.frexp(known)
    whole = np.ldexp(fraction, 53).astype(np.int64)  # value = whole · 2^(exponent − 53), exactly
    size = np.abs(whole)
    high, low = size >> 26, size & _LOW
    base = int(exponent.min())
    total = _exact(whole >> 26, exponent, base, 26) + _exact(whole & _LOW, exponent, base, 0)
    squares = (
        _exact(high * high, 2 * exponent, 2 * base, 52)
        + _exact(2 * high * low, 2 * exponent, 2 * base, 26)
        + _exact(low * low, 2 * exponent, 2 * base, 0)
    )
    return {
        "count": len(known),
        "sum": str(Fraction(total) * Fraction(2) ** (base - 53)),
        "squares": str(Fraction(squares) * Fraction(2) ** (2 * base - 106)),
        "min": float(known.min()),
        "max": float(known.max()),
    }


def _exact(terms: np.ndarray, exponent: np.ndarray, base: int, shift: int) -> int:
    """Σ terms · 2^(exponent − base + shift), exactly; |terms| < 2⁵⁶, fewer than 2²⁵ rows."""
    total = 0
    for half, up in ((terms >> 28, 28), (terms & ((1 << 28) - 1), 0)):
        sums = np.bincount(exponent - base, weights=half.astype(np.float64))  # below 2⁵³: exact
        total += sum(int(s) << (int(e) + up + shift) for e, s in enumerate(sums) if s)
    return total


def merge_moments(parts: Sequence[Json]) -> Json:
    """Moments of all rows of all parts."""
    lows = [part["min"] for part in parts if part["min"] is not None]
    highs = [part["max"] for part in parts if part["max"] is not None]
    return {
        "count": sum(part["count"] for part in parts),
        "sum": str(sum((Fraction(part["sum"]) for part in parts), Fraction(0))),
        "squares": str(sum((Fraction(part["squares"]) for part in parts), Fraction(0))),
        "min": min(lows, default=None),
        "max": max(highs, default=None),
    }


def mean_and_deviation(part: Json) -> tuple[float, float]:
    """Mean and standard deviation (over n, not n − 1); (0, 0) of nothing."""
    if not part["count"]:
        return 0.0, 0.0
    mean = Fraction(part["sum"]) / part["count"]
    variance = Fraction(part["squares"]) / part["count"] - mean * mean
    return float(mean), _root(variance)


def _root(square: Fraction) -> float:
    """√ of any size: a square may be beyond float64 where its root is not."""
    above, below = square.numerator, square.denominator
    digits = max(0, 64 + (below.bit_length() - above.bit_length()) // 2 + 1)
    return float(Fraction(math.isqrt((above << 2 * digits) // below), 1 << digits))


def sample(values: np.ndarray, row_ids: np.ndarray) -> Json:
    """The rows of smallest hash among those whose value is not NaN."""
    known = ~np.isnan(values)
    return _smallest(mix(row_ids[known].astype(np.uint64)), values[known])


def merge_samples(parts: Sequence[Json]) -> Json:
    """The rows of smallest hash of all parts."""
    return _smallest(
        np.concatenate([np.array(part["hashes"], dtype=np.uint64) for part in parts]),
        np.concatenate([np.array(part["values"], dtype=np.float64) for part in parts]),
    )


def _smallest(hashes: np.ndarray, values: np.ndarray) -> Json:
    order = np.argsort(hashes, kind="stable")[:SAMPLE_ROWS]
    return {"hashes": hashes[order].tolist(), "values": values[order].tolist()}
