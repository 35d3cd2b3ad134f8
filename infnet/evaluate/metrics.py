"""Metrics of a model on scored rows: every metric of every task, why one is missing, replicates for
intervals.

Shapes: N rows, U units (users, or buckets of users), R replicates.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from infnet.evaluate.bootstrap import REPLICATES_AT_ONCE, Interval, interval, user_weights
from infnet.evaluate.curves import Curve
from infnet.evaluate.predictions import Predictions
from infnet.evaluate.statistics import (
    AMOUNTS,
    Statistics,
    finish,
    known_metric,
)
from infnet.evaluate.totals import Totals
from infnet.tasks.base import BaseTask

AVERAGE = "average"

Values = dict[str, dict[str, float | None]]
"""{task: {metric: value}}; None where the metric is not defined."""


@dataclass(frozen=True)
class Measurement:
    """What the rows say about one model."""

    values: Values
    """With the entry `average` beside the tasks: the mean over the tasks that have the metric, None
    if one is None."""
    reasons: dict[str, dict[str, str]]
    """Why a value is None."""
    bounds: dict[str, dict[str, float]]
    """Largest possible error of a value computed from a histogram; absent where the value is
    exact."""
    replicates: dict[str, dict[str, Float64[ndarray, " R"]]]
    """User-bootstrap replicates; NaN where undefined. Empty without bootstrap."""
    correlations: dict[str, list[list[float | None]]]
    """`labels` and `predictions`: [T][T] in the order of the tasks."""
    curves: dict[str, Curve]
    rows: int
    users: int
    observed: dict[str, int]
    """Rows with an observed label and a weight above 0, by task."""
    digest: int
    """Equal for the same rows; paired comparisons require it."""
    seed: int = 0
    exact: bool = True

    def interval(self, task: str, metric: str) -> Interval | None:
        """95 % user-bootstrap interval; None where undefined, or without bootstrap."""
        found, value = self.replicates.get(task, {}).get(metric), self.values[task].get(metric)
        return None if found is None or value is None else interval(found, value)


def metrics_of(task: BaseTask, ndcg_at: Sequence[int] = ()) -> tuple[str, ...]:
    """Metrics computed for a task: those of its type, and nDCG@k where it is ranked by.

    Raises:
        ValueError: the type names a metric that is not known here.
    """
    names = tuple(task.metrics)
    if unknown := [name for name in names if not known_metric(name)]:
        raise ValueError(f"metrics {unknown} are not known to infnet.evaluate.statistics")
    return names + tuple(f"ndcg@{k}" for k in ndcg_at if "auc" in names)


def compute(
    predictions: Predictions,
    tasks: Mapping[str, BaseTask],
    *,
    bootstrap: int = 0,
    seed: int = 0,
    ndcg_at: Sequence[int] = (5,),
    curves: bool = False,
    threads: int = 2,
) -> Measurement:
    """Every metric of every task, exact up to `Predictions.exact_rows` rows.

    Above, per-user metrics and losses stay exact (they are added up over partitions of the users);
    AUC and Gini come from a histogram of the scores, with the bound of their error in `bounds`, and
    replicates draw buckets of users and take AUC and Gini to first order in their weights.

    Args:
        predictions: scored rows; only rows with an observed label and a weight above 0 count for a
            task.
        tasks: task types by name, the tasks of `predictions`.
        bootstrap: replicates of the user bootstrap; 0: none, no interval.
        seed: of the replicates. Equal seeds on equal rows pair the replicates of two models.
        ndcg_at: the k of nDCG@k, for tasks that have an AUC.
        curves: also summarise the ranked rows for the plots of a report.
        threads: tasks measured at the same time.
    """
    assert tuple(tasks) == predictions.tasks, (tuple(tasks), predictions.tasks)
    names = list(tasks)
    wanted = [metrics_of(task, ndcg_at) for task in tasks.values()]
    amounts = [task.label_range != (0.0, 1.0) for task in tasks.values()]
    sums = Totals(names, wanted, amounts, predictions.exact, curves)
    with ThreadPoolExecutor(threads) as pool:
        for part in predictions.partitions():
            sums.add(part, pool)
        if not predictions.exact:
            for part in predictions.partitions():
                sums.place(part)
        statistics = sums.finished()
        values = list(pool.map(lambda t: finish(statistics[t], wanted[t]), range(len(names))))
        replicates = _replicates(statistics, wanted, names, bootstrap, seed, pool)
    table: Values = {}
    for name, found in zip(names, values, strict=True):
        table[name] = {m: None if np.isnan(v[0]) else float(v[0]) for m, v in found.items()}
    reasons = {
        name: {m: _reason(m, statistics[t], sums.observed[t]) for m, v in row.items() if v is None}
        for t, (name, row) in enumerate(table.items())
    }
    table[AVERAGE] = averages(table, names)
    if bootstrap:
        replicates[AVERAGE] = {
            metric: np.mean([replicates[n][metric] for n in names if metric in table[n]], axis=0)
            for metric in table[AVERAGE]
        }
    return Measurement(
        values=table,
        reasons={name: row for name, row in reasons.items() if row},
        bounds=sums.bounds(),
        replicates=replicates,
        correlations=sums.correlations(),
        curves=sums.curves(),
        rows=predictions.num_rows,
        users=sums.users,
        observed=dict(zip(names, sums.observed, strict=True)),
        digest=predictions.digest,
        seed=seed,
        exact=predictions.exact,
    )


def averages(values: Values, tasks: Sequence[str]) -> dict[str, float | None]:
    """Mean of each metric over the tasks that have it, where two or more do; None if it is None for
    one of them.
    """
    result: dict[str, float | None] = {}
    for metric in dict.fromkeys(m for task in tasks for m in values[task]):
        found = [values[task][metric] for task in tasks if metric in values[task]]
        if len(found) > 1:
            known = [value for value in found if value is not None]
            result[metric] = sum(known) / len(found) if len(known) == len(found) else None
    return result


def _replicates(
    statistics: list[Statistics],
    wanted: list[tuple[str, ...]],
    names: list[str],
    bootstrap: int,
    seed: int,
    pool: ThreadPoolExecutor,
) -> dict[str, dict[str, ndarray]]:
    blocks: list[list[dict[str, ndarray]]] = [[] for _ in names]
    units = statistics[0].sums.shape[0]
    for first in range(0, bootstrap if units else 0, REPLICATES_AT_ONCE):
        count = min(REPLICATES_AT_ONCE, bootstrap - first)
        weights = user_weights(seed, first, count, units)
        found = pool.map(
            lambda t, w=weights: finish(statistics[t], wanted[t], w), range(len(names))
        )
        for block, values in zip(blocks, found, strict=True):
            block.append(values)
    return {
        name: {
            metric: np.concatenate(
                [values[metric] for values in block] or [np.full(bootstrap, np.nan)]
            )
            for metric in metrics
        }
        for name, metrics, block in zip(names, wanted, blocks, strict=True)
        if bootstrap
    }


def _reason(metric: str, statistics: Statistics, observed: int) -> str:
    if observed == 0:
        return "no row has an observed label and a weight above 0"
    if metric in AMOUNTS:
        if statistics.sums[:, statistics.columns["negative"]].sum() > 0 and metric == "gini":
            return "labels below 0"
        return f"all {observed} observed labels are equal"
    if metric.startswith("gauc"):
        return f"no user has both labels in {observed} observed rows"
    positive = statistics.sums[:, statistics.columns["wy"]].sum() > 0
    return f"all {observed} observed labels are {'positive' if positive else '0'}, both are needed"
