"""AUC and Gini of more rows than memory holds: a mergeable histogram of scores, with the error it
can make.

Shapes: N rows, U units, R replicates, H bins.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy import ndarray

from infnet.evaluate.ordering import monotone_bits

BINS = 2**20
LARGEST_LOGIT = 16.0

Scale = Literal["probability", "amount"]


def bins_of(score: Shaped[ndarray, " N"], scale: Scale) -> Int64[ndarray, " N"]:
    """Bin of each score, never decreasing in the score; the bins are fixed, so histograms of any
    rows merge.

    Probabilities: 2²⁰ bins of equal width (3·10⁻⁵) in logit space on ±16, with what lies outside in
    the first and last bin. Amounts: the upper 20 bits of the float32, bins of relative width 2⁻¹¹.
    """
    if scale == "amount":
        return (monotone_bits(score.astype(np.float32)) >> np.uint32(12)).astype(np.int64)
    p = score.astype(np.float64)
    with np.errstate(divide="ignore"):
        logit = np.log(p) - np.log1p(-p)
    place = (np.clip(logit, -LARGEST_LOGIT, LARGEST_LOGIT) / LARGEST_LOGIT + 1) * (BINS / 2)
    return np.minimum(place.astype(np.int64), BINS - 1)


@dataclass
class ScoreHistogram:
    """Masses a and b of `Concordance` by bin of the score.

    `point` counts a pair of rows in the same bin as a tie (½), any other as it is. The true count
    of a same-bin pair lies in [0, 1], so |point − exact| ≤ ½ Σ_h a_h b_h / (A B) = `bound`: a fact
    of the data, no matter how the scores are distributed inside the bins.
    """

    scale: Scale
    a: Float64[ndarray, " H"] = field(default_factory=lambda: np.zeros(BINS))
    b: Float64[ndarray, " H"] = field(default_factory=lambda: np.zeros(BINS))
    _around: tuple[ndarray, ndarray] | None = None

    def add(
        self, score: Shaped[ndarray, " N"], a: Float[ndarray, " N"], b: Float[ndarray, " N"]
    ) -> None:
        """Count further rows."""
        place = bins_of(score, self.scale)
        np.add.at(self.a, place, a)
        np.add.at(self.b, place, b)
        self._around = None

    def merge(self, other: "ScoreHistogram") -> None:
        """Count the rows of another histogram."""
        assert self.scale == other.scale
        self.a += other.a
        self.b += other.b
        self._around = None

    def point(self) -> float:
        """The c of `Concordance`, same-bin pairs as ties; NaN where A or B is 0."""
        total = self.a.sum() * self.b.sum()
        return float(self.a @ self._sides()[0] / total) if total > 0 else float("nan")

    def bound(self) -> float:
        """Largest possible |point − exact|."""
        total = self.a.sum() * self.b.sum()
        return float(0.5 * (self.a @ self.b) / total) if total > 0 else float("nan")

    def _sides(self) -> tuple[ndarray, ndarray]:
        """B below and A above the middle of each bin."""
        if self._around is None:
            below = np.cumsum(self.b) - 0.5 * self.b
            above = self.a.sum() - np.cumsum(self.a) + 0.5 * self.a
            self._around = below, above
        return self._around

    def placements(
        self,
        score: Shaped[ndarray, " N"],
        a: Float64[ndarray, " N"],
        b: Float64[ndarray, " N"],
    ) -> Float64[ndarray, " N"]:
        """Each row's pairs, a_i B(s < s_i) + b_i A(s > s_i), ties ½. Their sum is twice c·A·B."""
        place = bins_of(score, self.scale)
        below, above = self._sides()
        return a * below[place] + b * above[place]


@dataclass(frozen=True)
class LinearConcordance:
    """`Concordance` by units, of first order in their weights.

    With unit weights v of mean 1, Σ_uw v_u v_w C_uw = Σ_u v_u L_u − C + (second order in v − 1),
    L_u being the pairs that unit u takes part in and C all pairs. What is left out is of order 1/U
    beside a spread of order 1/√U.
    """

    value: float
    pairs: Float64[ndarray, " U"]
    a: Float64[ndarray, " U"]
    b: Float64[ndarray, " U"]
    bound: float = 0.0

    def point(self) -> float:
        """The c with every unit counted once."""
        return self.value

    def replicates(self, weights: Float64[ndarray, "R U"]) -> Float64[ndarray, " R"]:
        """The c with unit u counted `weights[r, u]` times, to first order; NaN where A or B is
        0.
        """
        v = weights / np.maximum(weights.mean(axis=1, keepdims=True), 1e-12)
        total = (v @ self.a) * (v @ self.b)
        with np.errstate(invalid="ignore", divide="ignore"):
            c = (v @ self.pairs - self.pairs.sum() / 2) / total
        return np.where(total > 0, c, np.nan)
