"""How alike the tasks are: correlation of their labels and of their predictions.

Shapes: N rows, T tasks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped
from numpy import ndarray


@dataclass
class CorrelationSums:
    """Mergeable sums behind the weighted Pearson correlation of every pair of tasks.

    The pair (s, t) uses the rows where both labels are observed, for labels and predictions alike,
    so the two matrices are comparable. Values are shifted by a constant (any, but one for all
    merged parts) against cancellation.
    """

    shift: Float64[ndarray, " T"]
    sums: Float64[ndarray, "4 T T"]
    """[s, t] over rows where both are observed: Σ w, Σ w x_s, Σ w x_s², Σ w x_s x_t."""

    @classmethod
    def of(
        cls,
        values: Shaped[ndarray, "N T"],
        observed: Bool[ndarray, "N T"],
        weight: Float[ndarray, " N"],
        shift: Float64[ndarray, " T"],
    ) -> "CorrelationSums":
        """Sums of some rows; values where not observed are ignored."""
        seen = observed.astype(np.float64)
        x = np.where(observed, values, shift) - shift
        wx = x * weight[:, None]
        products = [(seen * weight[:, None]).T @ seen, wx.T @ seen, (wx * x).T @ seen, wx.T @ x]
        return cls(shift, np.stack(products))

    def merge(self, other: "CorrelationSums") -> "CorrelationSums":
        """Sums of both sets of rows."""
        assert (self.shift == other.shift).all()
        return CorrelationSums(self.shift, self.sums + other.sums)

    def matrix(self) -> list[list[float | None]]:
        """Pearson correlation [T][T]; None where a pair shares no rows or one of the two is
        constant there.
        """
        w, x, xx, xy = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.maximum(xx / w - (x / w) ** 2, 0)
            spread = np.where(spread > 1e-12 * xx / w, spread, 0)
            r = (xy / w - x / w * (x / w).T) / np.sqrt(spread * spread.T)
        return [[float(v) if np.isfinite(v) else None for v in row] for row in np.clip(r, -1, 1)]
