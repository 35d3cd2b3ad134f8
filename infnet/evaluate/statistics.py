"""What the rows of one task add up to, per user: every metric is a ratio of sums of these, or a
concordance.

One definition serves the metric itself (every user once), the user bootstrap (users counted by
random weights) and the merge of partitions (sums add up).

Shapes: N rows, U units (users, or buckets of users), K columns, R replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy import ndarray

from infnet.evaluate.calibration import ECE_BINS, ece_bins, normalised, row_losses
from infnet.evaluate.histogram import LinearConcordance
from infnet.evaluate.ordering import Concordance, ascending, run_starts
from infnet.evaluate.ranking import order_by_user, user_aucs, user_ndcg

RANKING = ("auc", "gauc_impressions", "gauc_users", "gauc_positives")
CALIBRATION = ("logloss", "ne", "ece")
AMOUNTS = ("mae", "rmse", "r2", "gini")

BLOCK_ROWS = 65_536
"""Rows whose losses are worked on together: they fit the cache."""


def known_metric(name: str) -> bool:
    """True for every metric that can be computed here."""
    return name in RANKING + CALIBRATION + AMOUNTS or (
        name.startswith("ndcg@") and name[5:].isdigit() and int(name[5:]) > 0
    )


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task: label observed, weight above 0."""

    user: Int64[ndarray, " N"]
    """Code of the user, 0 … U − 1, U < 2³¹."""
    weight: Float[ndarray, " N"]
    prediction: Shaped[ndarray, " N"]
    """A probability, or an amount."""
    label: Shaped[ndarray, " N"]


@dataclass(frozen=True)
class Statistics:
    """Sums per unit (named columns of one matrix) and the concordances behind AUC and Gini."""

    columns: dict[str, slice]
    sums: Float64[ndarray, "U K"]
    ranks: dict[str, Concordance | LinearConcordance]
    """`auc`; `gini_model` and `gini_best`. Absent while partitions are being added up."""

    def folded(self, unit: Int64[ndarray, " U"], num_units: int) -> Float64[ndarray, "J K"]:
        """Sums by coarser units."""
        parts = [np.bincount(unit, column, minlength=num_units) for column in self.sums.T]
        return np.stack(parts, axis=1)


def pointwise(
    rows: TaskRows, metrics: Sequence[str], num_users: int, shift: float = 0.0
) -> dict[str, ndarray]:
    """Columns by user that need one row at a time: weights, losses, errors.

    `shift` is subtracted from labels inside R² against cancellation: any constant near their mean.
    """
    total: dict[str, ndarray] = {}
    size = max(BLOCK_ROWS, num_users)
    for first in range(0, max(rows.label.size, 1), size):
        block = slice(first, first + size)
        part = TaskRows(
            rows.user[block], rows.weight[block], rows.prediction[block], rows.label[block]
        )
        for name, values in _block_sums(part, set(metrics), num_users, shift).items():
            if first:
                total[name] += values
            else:
                total[name] = values
    total["users"] = (total["users"] > 0) + 0.0
    return total


def _block_sums(
    rows: TaskRows, metrics: set[str], num_users: int, shift: float
) -> dict[str, ndarray]:
    w, p, y = (c.astype(np.float64) for c in (rows.weight, rows.prediction, rows.label))

    def by_user(values: ndarray) -> ndarray:
        return np.bincount(rows.user, values, minlength=num_users)

    built = {
        "users": np.bincount(rows.user, minlength=num_users),
        "w": by_user(w),
        "wy": by_user(w * y),
    }
    if {"logloss", "ne"} & metrics:
        built["logloss"] = by_user(w * row_losses(y, p))
    if "ece" in metrics:
        cell = rows.user * ECE_BINS + ece_bins(p)
        built["ece"] = np.bincount(cell, w * (p - y), num_users * ECE_BINS)
        built["ece"] = built["ece"].reshape(num_users, ECE_BINS)
    if set(AMOUNTS) & metrics:
        error = p - y
        built["mae"] = by_user(w * np.abs(error))
        built["rmse"] = by_user(w * error * error)
        built["y"] = by_user(w * (y - shift))
        built["yy"] = by_user(w * (y - shift) ** 2)
        built["negative"] = by_user((y < 0) + 0.0)
    return built


def ranked(
    rows: TaskRows,
    metrics: Sequence[str],
    num_users: int,
    *,
    amount: bool = False,
    concordances: bool = True,
) -> tuple[dict[str, ndarray], dict[str, Concordance | LinearConcordance]]:
    """What needs the rows in order of prediction: columns by user (gAUC, nDCG), and concordances.

    With `amount` the ranking metrics take a label above 0 as positive. Concordances need all rows
    at once; without them, rows may be a part that holds its users whole.
    """
    columns: dict[str, ndarray] = {}
    found: dict[str, Concordance | LinearConcordance] = {}
    by_user = [n for n in metrics if n.startswith(("gauc_", "ndcg@"))]
    if not by_user and not {"auc", "gini"} & set(metrics):
        return columns, found
    order = ascending(rows.prediction)
    y = rows.label.astype(np.float64)
    w = None if (rows.weight == 1).all() else rows.weight.astype(np.float64)
    gain = (y > 0) + 0.0 if amount else y
    if by_user:
        columns = _user_columns(rows, w, gain, order, by_user, num_users)
    if not concordances or not y.size:
        return columns, found
    if "auc" in metrics:
        a, b = _masses(gain[order], None if w is None else w[order])
        found["auc"] = _concordance(rows.prediction, order, a, b, rows.user)
    if "gini" in metrics:
        w = np.ones(y.size) if w is None else w
        for name, score in (("gini_model", rows.prediction), ("gini_best", rows.label)):
            order = order if name == "gini_model" else ascending(score)
            a = w[order]
            found[name] = _concordance(score, order, a, a * y[order], rows.user)
    return columns, found


def _masses(gain: ndarray, w: ndarray | None) -> tuple[ndarray, ndarray]:
    if w is None:
        return gain, 1 - gain
    return gain * w, (1 - gain) * w


def _user_columns(
    rows: TaskRows,
    w: ndarray | None,
    gain: ndarray,
    order: ndarray,
    metrics: list[str],
    num_users: int,
) -> dict[str, ndarray]:
    grouped = order_by_user(order, rows.prediction, rows.user)
    who = rows.user[grouped.rows[grouped.users]]
    gain = gain[grouped.rows]
    built: dict[str, ndarray] = {}

    def put(name: str, values: ndarray) -> None:
        built[name] = np.zeros(num_users)
        built[name][who] = values

    for name in metrics:
        if name.startswith("ndcg@"):
            put(name, user_ndcg(grouped, gain, int(name[5:])))
    if any(name.startswith("gauc") for name in metrics):
        masses = _masses(gain, None if w is None else w[grouped.rows])
        auc, positives, negatives = user_aucs(grouped, *masses)
        both = ~np.isnan(auc)
        shares = {"impressions": positives + negatives, "users": 1.0, "positives": positives}
        for name, share in shares.items():
            share = np.where(both, share, 0.0)
            put(f"gauc_{name}", share * np.where(both, auc, 0.0))
            put(f"share_{name}", share)
    return built


def _concordance(
    score: ndarray, order: ndarray, a: ndarray, b: ndarray, user: ndarray
) -> Concordance:
    ordered = score[order]
    return Concordance(run_starts(ordered[1:] != ordered[:-1]), a, b, user.astype(np.int32)[order])


def matrix(built: dict[str, ndarray]) -> tuple[dict[str, slice], Float64[ndarray, "U K"]]:
    """Named columns side by side, and where each stands."""
    columns: dict[str, slice] = {}
    at = 0
    for name, values in built.items():
        width = 1 if values.ndim == 1 else values.shape[1]
        columns[name] = slice(at, at + width)
        at += width
    return columns, np.column_stack(list(built.values()))


def finish(
    statistics: Statistics, metrics: Sequence[str], weights: Float64[ndarray, "R U"] | None = None
) -> dict[str, Float64[ndarray, " R"]]:
    """The metrics with unit u counted `weights[r, u]` times (once, R = 1, without weights); NaN
    where undefined.
    """
    if weights is None:
        totals = statistics.sums.sum(axis=0, keepdims=True)
        ranks = {name: np.array([c.point()]) for name, c in statistics.ranks.items()}
    else:
        totals = weights @ statistics.sums
        ranks = {name: c.replicates(weights) for name, c in statistics.ranks.items()}
    undefined = np.full(totals.shape[0], np.nan)

    def total(name: str) -> ndarray:
        found = statistics.columns.get(name)
        return undefined if found is None else totals[:, found.start]

    result: dict[str, ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        w = total("w")
        for name in metrics:
            if name == "auc":
                value = ranks.get("auc", undefined)
            elif name.startswith("gauc_"):
                value = total(name) / total("share" + name[4:])
            elif name.startswith("ndcg@"):
                value = total(name) / total("users")
            elif name == "ne":
                value = normalised(total("logloss") / w, total("wy") / w)
            elif name == "ece":
                value = np.abs(totals[:, statistics.columns["ece"]]).sum(axis=1) / w
            elif name == "rmse":
                value = np.sqrt(total("rmse") / w)
            elif name == "r2":
                spread = total("yy") - total("y") ** 2 / w
                value = np.where(
                    spread > 1e-12 * total("yy"), 1 - total("rmse") / spread, undefined
                )
            elif name == "gini":
                model, best = (
                    1 - 2 * ranks.get(k, undefined) + 1 / w for k in ("gini_model", "gini_best")
                )
                proper = (total("negative") == 0) & (best > 1 / w * (1 + 1e-9))
                value = np.where(proper, model / best, undefined)
            else:
                value = total(name) / w
            result[name] = np.where(np.isfinite(value), value, np.nan)
    return result
