"""Calibration metrics of probabilities: LogLoss, normalised entropy, ECE, and the reliability
curve.

Shapes: N rows, R replicates, B bins.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy import ndarray

ECE_BINS = 15
"""Bins of equal width on [0, 1], as in Guo et al. 2017."""

SMALLEST = float(np.finfo(np.float32).eps)
"""Probabilities are clipped to [2⁻²³, 1 − 2⁻²³] inside a logarithm (scikit-learn's rule for
float32)."""


def row_losses(
    label: Shaped[ndarray, " N"], prediction: Float[ndarray, " N"]
) -> Float64[ndarray, " N"]:
    """−y ln p − (1 − y) ln(1 − p) of each row, in nats."""
    p = np.clip(prediction.astype(np.float64), SMALLEST, 1 - SMALLEST)
    positive = label == 1
    if (positive | (label == 0)).all():
        return -np.log(np.where(positive, p, 1 - p))
    y = label.astype(np.float64)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def ece_bins(prediction: Float[ndarray, " N"]) -> Int64[ndarray, " N"]:
    """Bin of each probability: ⌊15 p⌋, the last bin including 1."""
    return np.minimum((prediction.astype(np.float64) * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def normalised(logloss: Any, rate: Any) -> Any:
    """Loss divided by the entropy of the base rate; NaN where the rate is 0 or 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return np.where((rate > 0) & (rate < 1), logloss / entropy, np.nan)


# ---------------------------------------------------------------------------------------------
# The same on plain arrays


def logloss(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Weighted mean of −y ln p − (1 − y) ln(1 − p), in nats."""
    return float(np.average(row_losses(label, prediction), weights=_float64(weight)))


def ne(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Normalised entropy (He et al. 2014): LogLoss over the entropy of the evaluated rows' own base
    rate.

    1 is what always predicting the base rate gets; lower is better.

    Raises:
        ValueError: only one label, so that the entropy is 0.
    """
    rate = float(np.average(label.astype(np.float64), weights=_float64(weight)))
    if not 0 < rate < 1:
        raise ValueError(f"ne needs rows of both labels, found a base rate of {rate:g}")
    return float(normalised(logloss(label, prediction, weight), rate))


def ece(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Expected calibration error over 15 bins of equal width on [0, 1] (Guo et al. 2017, eq. 5).

    ECE = Σ_b (W_b / W) |mean label in b − mean prediction in b|, W_b the weight of the rows whose
    prediction is in bin b. For a rare task nearly all rows fall into the first bin; look at the
    reliability curve (equal weight per bin) then.
    """
    gap = prediction.astype(np.float64) - label
    w = np.ones(gap.size) if weight is None else weight.astype(np.float64)
    by_bin = np.bincount(ece_bins(prediction), w * gap, minlength=ECE_BINS)
    return float(np.abs(by_bin).sum() / w.sum())


def _float64(weight: ndarray | None) -> ndarray | None:
    return None if weight is None else weight.astype(np.float64)
