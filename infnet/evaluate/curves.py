"""Curves of the report: ROC, reliability and lift, all from one short summary of the ranked rows.

Shapes: N rows, G groups of rows with neighbouring predictions, P points.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped
from numpy import ndarray

from infnet.evaluate.ordering import ascending

GROUPS = 256


@dataclass(frozen=True)
class Curve:
    """Groups of about equal weight in ascending order of prediction; sums over the rows of each."""

    prediction: Float64[ndarray, " G"]
    """Weighted sum of predictions."""
    label: Float64[ndarray, " G"]
    """Weighted sum of labels."""
    weight: Float64[ndarray, " G"]

    def merge(self, other: "Curve") -> "Curve":
        """The groups of both, regrouped: a group is never divided, so the curve of merged parts is
        approximate.
        """
        parts = [np.concatenate([getattr(self, n), getattr(other, n)]) for n in _NAMES]
        return Curve(*(_grouped(parts, GROUPS)))

    def reliability(
        self, groups: int = 15
    ) -> tuple[Float64[ndarray, " P"], Float64[ndarray, " P"]]:
        """Mean prediction and mean label of groups of about equal weight."""
        prediction, label, weight = _grouped([self.prediction, self.label, self.weight], groups)
        return prediction / weight, label / weight

    def roc(self) -> tuple[Float64[ndarray, " P"], Float64[ndarray, " P"]]:
        """False and true positive rates by falling threshold, for labels in [0, 1]; empty without
        both labels.
        """
        positive, negative = self.label[::-1], (self.weight - self.label)[::-1]
        if not positive.sum() > 0 or not negative.sum() > 0:
            return np.zeros(0), np.zeros(0)
        return _share(negative), _share(positive)

    def lift(self) -> tuple[Float64[ndarray, " P"], Float64[ndarray, " P"]]:
        """Share of rows and share of the label's sum they hold, highest predictions first; empty if
        that sum is 0.
        """
        if not self.label.sum() > 0:
            return np.zeros(0), np.zeros(0)
        return _share(self.weight[::-1]), _share(self.label[::-1])


_NAMES = ("prediction", "label", "weight")


def curve_of(
    prediction: Shaped[ndarray, " N"], label: Shaped[ndarray, " N"], weight: Shaped[ndarray, " N"]
) -> Curve:
    """Summary of some rows."""
    w = weight.astype(np.float64)
    return Curve(*_grouped([w * prediction, w * label, w], GROUPS, prediction))


def _grouped(
    columns: list[ndarray], groups: int, order_by: ndarray | None = None
) -> list[Float64[ndarray, " G"]]:
    weight = columns[2]
    order = ascending(columns[0] / weight if order_by is None else order_by)
    running = np.cumsum(weight[order])
    if not running.size:
        return [np.zeros(0)] * 3
    middle = running - weight[order] / 2
    group = np.minimum(middle / running[-1] * groups, groups - 1).astype(np.int64)
    sums = [np.bincount(group, column[order], minlength=groups) for column in columns]
    filled = sums[2] > 0
    return [column[filled] for column in sums]


def _share(values: ndarray) -> ndarray:
    running = np.concatenate([np.zeros(1), np.cumsum(values)])
    return running / running[-1]
