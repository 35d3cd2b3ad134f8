"""Statistics of all tasks, added up over parts of the rows that hold every user whole.

Shapes: N rows, U users.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from infnet.evaluate.correlation import CorrelationSums
from infnet.evaluate.curves import Curve, curve_of
from infnet.evaluate.histogram import LinearConcordance, ScoreHistogram
from infnet.evaluate.predictions import Rows, mixed
from infnet.evaluate.statistics import Statistics, TaskRows, matrix, pointwise, ranked

BUCKETS = 4096
"""Units of the bootstrap above `exact_rows` rows: users, hashed into so many groups."""


@dataclass
class Totals:
    """Statistics of all tasks, added up over partitions of the users."""

    tasks: list[str]
    wanted: list[tuple[str, ...]]
    amounts: list[bool]
    exact: bool
    draw: bool
    users: int = 0
    observed: list[int] = field(default_factory=list)
    totals: list[Statistics] = field(default_factory=list)
    histograms: list[dict[str, ScoreHistogram]] = field(default_factory=list)
    pairs: list[dict[str, ndarray]] = field(default_factory=list)
    shift: ndarray = field(default_factory=lambda: np.zeros(0))
    correlated: list[CorrelationSums] = field(default_factory=list)
    drawn: list[Curve | None] = field(default_factory=list)

    def add(self, rows: Rows, pool: ThreadPoolExecutor) -> None:
        """Add a part. While `exact`, the only one."""
        users, code = dense_codes(rows.user)
        self.users += users.size
        num_tasks = len(self.tasks)
        if not self.observed:
            self._begin(rows)
        shift = self.shift

        tasks = [task_rows(rows, code, t) for t in range(num_tasks)]
        # two jobs per task, so that one task alone uses two threads
        summed = [
            pool.submit(pointwise, task, wanted, users.size, shift=float(centre))
            for task, wanted, centre in zip(tasks, self.wanted, shift, strict=True)
        ]
        ordered = [
            pool.submit(ranked, task, wanted, users.size, amount=amount, concordances=self.exact)
            for task, wanted, amount in zip(tasks, self.wanted, self.amounts, strict=True)
        ]
        bucket = None if self.exact else (mixed(users) % np.uint64(BUCKETS)).astype(np.int64)
        for t, task in enumerate(tasks):
            columns, concordances = ordered[t].result()
            layout, sums = matrix({**summed[t].result(), **columns})
            found = Statistics(layout, sums, concordances)
            self.observed[t] += task.label.size
            if self.draw and task.label.size:
                curve, before = curve_of(task.prediction, task.label, task.weight), self.drawn[t]
                self.drawn[t] = curve if before is None else before.merge(curve)
            if bucket is not None:
                found = Statistics(found.columns, found.folded(bucket, BUCKETS), {})
                self._count(t, task)
            if t < len(self.totals):
                self.totals[t] = Statistics(found.columns, self.totals[t].sums + found.sums, {})
            else:
                self.totals.append(found)
        if num_tasks > 1:
            self._correlate(rows, shift)

    def _begin(self, rows: Rows) -> None:
        seen = np.maximum(rows.observed.sum(axis=0), 1)
        self.shift = np.where(rows.observed, rows.label, 0).sum(axis=0, dtype=np.float64) / seen
        self.observed = [0] * len(self.tasks)
        self.drawn = [None] * len(self.tasks)
        self.histograms = [
            _histograms(m, a) for m, a in zip(self.wanted, self.amounts, strict=True)
        ]

    def _count(self, t: int, task: TaskRows) -> None:
        for name, histogram in self.histograms[t].items():
            histogram.add(*_score_and_masses(name, task, self.amounts[t]))

    def _correlate(self, rows: Rows, shift: ndarray) -> None:
        parts = [
            CorrelationSums.of(values, rows.observed, rows.weight.astype(np.float64), shift)
            for values in (rows.label, rows.prediction)
        ]
        if self.correlated:
            parts = [a.merge(b) for a, b in zip(self.correlated, parts, strict=True)]
        self.correlated = parts

    def place(self, rows: Rows) -> None:
        """Second pass above `exact_rows`: the pairs each unit takes part in, by the finished
        histograms.
        """
        users, code = dense_codes(rows.user)
        bucket = (mixed(users) % np.uint64(BUCKETS)).astype(np.int64)[code]
        if not self.pairs:
            self.pairs = [{} for _ in self.tasks]
        for t, histograms in enumerate(self.histograms):
            task = task_rows(rows, bucket, t)
            for name, histogram in histograms.items():
                score, a, b = _score_and_masses(name, task, self.amounts[t])
                columns = (histogram.placements(score, a, b), a, b)
                found = np.stack([np.bincount(task.user, c, minlength=BUCKETS) for c in columns])
                self.pairs[t][name] = self.pairs[t].get(name, 0.0) + found

    def finished(self) -> list[Statistics]:
        """Statistics by task: per user while `exact`, else per bucket of users."""
        if self.exact:
            return self.totals
        result: list[Statistics] = []
        for total, histograms, pairs in zip(self.totals, self.histograms, self.pairs, strict=True):
            ranks = {
                name: LinearConcordance(h.point(), *pairs[name], bound=h.bound())
                for name, h in histograms.items()
            }
            result.append(Statistics(total.columns, total.sums, {**ranks}))
        return result

    def bounds(self) -> dict[str, dict[str, float]]:
        """Largest possible error of what was read from a histogram."""
        result: dict[str, dict[str, float]] = {}
        for task, total, histograms in zip(self.tasks, self.totals, self.histograms, strict=True):
            if self.exact:
                continue
            row: dict[str, float] = {}
            if "auc" in histograms:
                row["auc"] = histograms["auc"].bound()
            if "gini_model" in histograms:
                row["gini"] = _gini_bound(
                    histograms, float(total.sums[:, total.columns["w"]].sum())
                )
            result[task] = {name: value for name, value in row.items() if np.isfinite(value)}
        return result

    def correlations(self) -> dict[str, list[list[float | None]]]:
        """Matrices of the `labels` and `predictions`; empty for one task."""
        return {
            n: s.matrix() for n, s in zip(("labels", "predictions"), self.correlated, strict=False)
        }

    def curves(self) -> dict[str, Curve]:
        """By task; without those that have no rows, empty unless drawn."""
        pairs = zip(self.tasks, self.drawn, strict=True)
        return {task: curve for task, curve in pairs if curve is not None}


def dense_codes(user: Int64[ndarray, " N"]) -> tuple[Int64[ndarray, " U"], Int64[ndarray, " N"]]:
    """The different users in ascending order, and each row's position among them (by hashing, not
    by a sort).
    """
    encoded = pa.array(user).dictionary_encode()
    found = encoded.dictionary.to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.argsort(found)
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    return found[order], place[encoded.indices.to_numpy(zero_copy_only=False)]


def task_rows(rows: Rows, code: Int64[ndarray, " N"], task: int) -> TaskRows:
    """The rows that count for one task."""
    counts = rows.observed[:, task] & (rows.weight > 0)
    columns = (code, rows.weight, rows.prediction[:, task], rows.label[:, task])
    if counts.all():
        return TaskRows(*(np.ascontiguousarray(column) for column in columns))
    return TaskRows(*(column[counts] for column in columns))


def _histograms(metrics: Sequence[str], amount: bool) -> dict[str, ScoreHistogram]:
    found: dict[str, ScoreHistogram] = {}
    scale = "amount" if amount else "probability"
    if "auc" in metrics:
        found["auc"] = ScoreHistogram(scale)
    if "gini" in metrics:
        found["gini_model"] = ScoreHistogram(scale)
        found["gini_best"] = ScoreHistogram("amount")
    return found


def _score_and_masses(name: str, rows: TaskRows, amount: bool) -> tuple[ndarray, ndarray, ndarray]:
    w, y = rows.weight.astype(np.float64), rows.label.astype(np.float64)
    if name == "auc":
        gain = (y > 0) + 0.0 if amount else y
        return rows.prediction, w * gain, w * (1 - gain)
    return (rows.prediction if name == "gini_model" else rows.label), w, w * y


def _gini_bound(histograms: dict[str, ScoreHistogram], weight: float) -> float:
    # G = 1 − 2c + 1/W of each; the ratio is monotone in both, so its extremes are at the ends.
    ends = [
        [1 - 2 * (h.point() + sign * h.bound()) + 1 / weight for sign in (-1, 0, 1)]
        for h in (histograms["gini_model"], histograms["gini_best"])
    ]
    value = ends[0][1] / ends[1][1]
    if min(ends[1]) <= 0:
        return float("nan")
    return max(abs(m / b - value) for m in ends[0] for b in ends[1])
