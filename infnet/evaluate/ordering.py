"""Order of scores: one sort per task, from which AUC, gAUC, nDCG and Gini are all read.

Shapes: N rows, G runs of equal scores, U units (users, or buckets of users), R replicates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt32
from numpy import ndarray


def ascending(values: Shaped[ndarray, " N"]) -> Int64[ndarray, " N"]:
    """Row numbers in ascending order of `values`; rows of equal value stay in row order.

    Scores that float32 holds exactly (all a model gives) become the high half of a 64-bit integer
    whose low half is the row number: sorting those integers is several times faster than an argsort
    of the scores.
    """
    narrow = values.astype(np.float32)
    if values.size >= 2**32 or not (narrow == values).all():
        return np.argsort(values, kind="stable")
    keys = monotone_bits(narrow).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(keys.size, dtype=np.uint32)
    keys.sort()
    keys &= np.uint64(0xFFFFFFFF)
    return keys.view(np.int64)


def monotone_bits(values: Float[ndarray, " N"]) -> UInt32[ndarray, " N"]:
    """Integers in the order of the float32 values; −0 and 0 give the same one."""
    bits = (values + np.float32(0)).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    return np.where(negative, ~bits, bits | np.uint32(0x80000000))


def run_starts(changed: Bool[ndarray, " M"]) -> Int64[ndarray, " G"]:
    """First position of each run; `changed[i]` says that position i + 1 differs from position i."""
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(changed) + 1])


def sums_of_runs(
    values: Float64[ndarray, " N"], starts: Int64[ndarray, " G"]
) -> Float64[ndarray, " G"]:
    """Sum of each run; the values themselves where every run is one row."""
    return values if starts.size == values.size else np.add.reduceat(values, starts)


@dataclass(frozen=True)
class Concordance:
    """c = Σ_i a_i (B(s < s_i) + ½ B(s = s_i)) / (A · B), for masses a, b ≥ 0 on rows in ascending
    order of score s.

    B(…) is the sum of b over the rows in question, A and B are the sums of all masses. With a = w·y
    and b = w·(1 − y) this is the AUC, ties exact; with a = w and b = w·y it is (1 − Gini) / 2.
    """

    starts: Int64[ndarray, " G"]
    """First position of each run of equal scores."""
    a: Float64[ndarray, " N"]
    b: Float64[ndarray, " N"]
    unit: Shaped[ndarray, " N"]
    """Unit of each row, 0 … U − 1."""

    def point(self) -> float:
        """The c with every unit counted once; NaN where A or B is 0."""
        a, b = sums_of_runs(self.a, self.starts), sums_of_runs(self.b, self.starts)
        below = np.cumsum(b)
        total = a.sum() * below[-1] if below.size else 0.0
        below -= 0.5 * b
        return float(a @ below / total) if total > 0 else float("nan")

    def replicates(self, weights: Float64[ndarray, "R U"]) -> Float64[ndarray, " R"]:
        """The c with unit u counted `weights[r, u]` times, for each r; NaN where A or B is 0.

        Only rows with b > 0 enter the running sum, only rows with a > 0 look it up: N operations
        per replicate.
        """
        has_a, has_b = self.a > 0, self.b > 0
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_b)])
        ends = np.append(self.starts[1:], self.a.size)
        lengths = ends - self.starts
        low = np.repeat(before[self.starts], lengths)[has_a]
        high = np.repeat(before[ends], lengths)[has_a]
        tied = bool((low != high).any())
        unit_a, unit_b = self.unit[has_a].astype(np.int64), self.unit[has_b].astype(np.int64)
        a, b = _unless_ones(self.a[has_a]), _unless_ones(self.b[has_b])
        result = np.full(weights.shape[0], np.nan)
        running = np.zeros(unit_b.size + 1)
        # written again and again: new arrays of this size would cost more than the arithmetic
        mass_b, mass_a = np.empty(unit_b.size), np.empty(unit_a.size)
        found, more = np.empty(unit_a.size), np.empty(unit_a.size)
        for r, weight in enumerate(np.ascontiguousarray(weights)):
            weight.take(unit_b, out=mass_b, mode="clip")
            if b is not None:
                mass_b *= b
            np.cumsum(mass_b, out=running[1:])
            weight.take(unit_a, out=mass_a, mode="clip")
            if a is not None:
                mass_a *= a
            running.take(low, out=found, mode="clip")
            if tied:
                found += running.take(high, out=more, mode="clip")
                found *= 0.5
            total = mass_a.sum() * running[-1]
            if total > 0:
                result[r] = mass_a @ found / total
        return result


def _unless_ones(mass: Any) -> Any:
    return None if (mass == 1).all() else mass
