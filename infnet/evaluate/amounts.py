"""Metrics of amounts (play time, spend, ROI): MAE, RMSE, R², normalised Gini, decile MAPE.

Shapes: N rows.
"""

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from infnet.evaluate.ordering import Concordance, ascending, run_starts, sums_of_runs


def mae(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Weighted mean of |prediction − label|, in the label's unit."""
    error = prediction.astype(np.float64) - label
    return float(np.average(np.abs(error), weights=weight))


def rmse(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Root of the weighted mean of (prediction − label)², in the label's unit."""
    error = prediction.astype(np.float64) - label
    return float(np.sqrt(np.average(error * error, weights=weight)))


def r2(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """1 − Σ w (y − ŷ)² / Σ w (y − ȳ)²; at most 1, 0 for the constant mean, unbounded below.

    Raises:
        ValueError: all labels are equal.
    """
    y = label.astype(np.float64)
    w = np.ones(y.size) if weight is None else weight.astype(np.float64)
    spread = w @ (y - np.average(y, weights=w)) ** 2
    if spread == 0:
        raise ValueError(f"r2 needs labels that differ, found {y.size} rows of one value")
    return float(1 - (w @ (y - prediction) ** 2) / spread)


def gini(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Normalised Gini: the area under the gain curve of the prediction over that of the label
    itself.

    G = 2/n Σ_i C_i − 1, C_i the share of all labels in the first i rows by descending score;
    returned is G(prediction) / G(label), as in google/lifetime_value. Rows of equal score: the mean
    over their orders. A weight counts as so many equal rows. 1 is a perfect order; a random one is
    expected at 1/(n G(label)), practically 0.

    Raises:
        ValueError: a label is negative, or all are equal.
    """
    y = label.astype(np.float64)
    if y.size == 0 or y.min() < 0 or y.min() == y.max():
        raise ValueError(
            "gini needs labels that differ and are 0 or more; look at the label column"
        )
    w = np.ones(y.size) if weight is None else weight.astype(np.float64)
    model, best = (concordance(score, w, w * y).point() for score in (prediction, y))
    return float(normalised_gini(model, best, w.sum()))


def concordance(
    score: Shaped[ndarray, " N"], a: Float[ndarray, " N"], b: Float[ndarray, " N"]
) -> Concordance:
    """`Concordance` of rows in any sequence, all of one unit."""
    order = ascending(score)
    ordered = score[order]
    starts = run_starts(ordered[1:] != ordered[:-1])
    return Concordance(starts, a[order], b[order], np.zeros(ordered.size, np.int32))


def normalised_gini(model: float, best: float, weight: float) -> float:
    """Ratio of two Ginis, each 1 − 2c + 1/W (the last term is the Riemann sum of
    google/lifetime_value).
    """
    return (1 - 2 * model + 1 / weight) / (1 - 2 * best + 1 / weight)


def decile_mape(
    label: Shaped[ndarray, " N"],
    prediction: Float[ndarray, " N"],
    weight: Float[ndarray, " N"] | None = None,
) -> float:
    """Mean over ten groups of equal weight, by prediction, of |mean prediction − mean label| / mean
    label.

    The calibration measure of google/lifetime_value. Rows of one prediction go together, to the
    decile of their middle.

    Raises:
        ValueError: a decile without rows, or with a mean label of 0 or less.
    """
    order = ascending(prediction)
    score = prediction[order].astype(np.float64)
    w = np.ones(order.size) if weight is None else weight[order].astype(np.float64)
    starts = run_starts(score[1:] != score[:-1])
    of_run = [sums_of_runs(w * values, starts) for values in (1.0, label[order], score)]
    middle = (np.cumsum(of_run[0]) - of_run[0] / 2) / w.sum()
    group = np.minimum(10 * middle, 9).astype(np.int64)
    sums = [np.bincount(group, values, minlength=10) for values in of_run]
    if (sums[1] <= 0).any():
        raise ValueError(
            "decile_mape needs a mean label above 0 in each decile of the prediction, found "
            f"{int((sums[1] <= 0).sum())} deciles without; evaluate more rows"
        )
    return float(np.mean(np.abs(sums[2] - sums[1]) / sums[1]))
