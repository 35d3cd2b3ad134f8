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


def measure(
    rows: TaskRows,
    metrics: Sequence[str],
    num_users: int,
    *,
    amount: bool = False,
    shift: float = 0.0,
    ranks: bool = True,
) -> Statistics:
    """Sums of the rows by user, as far as `metrics` need them.

    With `amount` the ranking metrics take a label above 0 as positive. `shift` is subtracted from
    labels inside R² against cancellation: any constant near their mean. `ranks=False` leaves out
    what needs all rows at once.
    """
    w = rows.weight.astype(np.float64)
    y = rows.label.astype(np.float64)
    built: dict[str, ndarray] = {"users": (np.bincount(rows.user, minlength=num_users) > 0) + 0.0}

    def by_user(values: ndarray) -> ndarray:
        return np.bincount(rows.user, values, minlength=num_users)

    built["w"] = by_user(w)
    built["wy"] = by_user(w * y)
    if {"logloss", "ne"} & set(metrics):
        built["logloss"] = by_user(w * row_losses(rows.label, rows.prediction))
    if "ece" in metrics:
        cell = rows.user * ECE_BINS + ece_bins(rows.prediction)
        gap = w * (rows.prediction - y)
        built["ece"] = np.bincount(cell, gap, num_users * ECE_BINS).reshape(num_users, ECE_BINS)
    if set(AMOUNTS) & set(metrics):
        error = rows.prediction.astype(np.float64) - y
        built["mae"] = by_user(w * np.abs(error))
        built["rmse"] = by_user(w * error * error)
        built["y"] = by_user(w * (y - shift))
        built["yy"] = by_user(w * (y - shift) ** 2)
        built["negative"] = by_user((y < 0) + 0.0)
    concordances: dict[str, Concordance | LinearConcordance] = {}
    ranked = [name for name in metrics if name in RANKING or name.startswith("ndcg@")]
    if ranked or "gini" in metrics:
        order = ascending(rows.prediction)
        gain = (y > 0) + 0.0 if amount else y
        if ranked:
            built.update(_user_columns(rows, w, gain, order, ranked, num_users))
        ranks = ranks and y.size > 0
        if ranks and "auc" in metrics:
            ordered = gain[order], w[order]
            a, b = ordered[0] * ordered[1], (1 - ordered[0]) * ordered[1]
            concordances["auc"] = _concordance(rows.prediction, order, a, b, rows.user)
        if ranks and "gini" in metrics:
            w_o, y_o = w[order], y[order]
            concordances["gini_model"] = _concordance(
                rows.prediction, order, w_o, w_o * y_o, rows.user
            )
            order = ascending(rows.label)
            w_o, y_o = w[order], y[order]
            concordances["gini_best"] = _concordance(rows.label, order, w_o, w_o * y_o, rows.user)
    return Statistics(*_matrix(built), ranks=concordances)


def _user_columns(
    rows: TaskRows, w: ndarray, gain: ndarray, order: ndarray, ranked: list[str], num_users: int
) -> dict[str, ndarray]:
    grouped = order_by_user(order, rows.prediction, rows.user)
    who = rows.user[grouped.rows[grouped.users]]
    gain, w = gain[grouped.rows], w[grouped.rows]
    built: dict[str, ndarray] = {}

    def put(name: str, values: ndarray) -> None:
        built[name] = np.zeros(num_users)
        built[name][who] = values

    for name in ranked:
        if name.startswith("ndcg@"):
            put(name, user_ndcg(grouped, gain, int(name[5:])))
    if any(name.startswith("gauc") for name in ranked):
        auc, positives, negatives = user_aucs(grouped, gain * w, (1 - gain) * w)
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


def _matrix(built: dict[str, ndarray]) -> tuple[dict[str, slice], ndarray]:
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
