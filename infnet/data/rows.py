"""From a fragment of the raw log to checked rows (bad or with roles and split), and what they tell.

Nothing here knows Ray: prepare calls it in its tasks, tests call it directly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infnet.data.passes import SPLIT, TRAIN
from infnet.data.shards import SPLITS
from infnet.data.split import NO_SPLIT, Splitter
from infnet.features.base import VocabularyDemand
from infnet.features.columns import pc, plain
from infnet.features.feature_set import FeatureSet
from infnet.features.hashing import hash_values
from infnet.features.statistic import observed_value
from infnet.features.vocabulary import COUNTS
from rayrun.config import Json
from rayrun.data.log import BAD, ROW_ID, Fragment, RawLog, add_reason


@dataclass(frozen=True)
class RowReader:
    """The raw log with what makes its rows usable. Picklable."""

    log: RawLog
    fragments: tuple[Fragment, ...]
    features: FeatureSet
    splitter: Splitter

    @property
    def columns(self) -> list[str]:
        """Raw columns that are read: what features, labels and roles need, and the split."""
        return list(dict.fromkeys([*self.features.columns(labels=True), self.splitter.column]))

    def read(self, index: int) -> Iterator[pa.Table]:
        """The rows of one fragment with roles, labels, `__split` and `__bad` (null: a good row)."""
        for raw in self.log.read(self.fragments[index], self.columns):
            codes = self.splitter.codes(raw)
            bad = plain(self.features.check(raw))
            bad = add_reason(bad, pa.array(codes == NO_SPLIT), self.splitter.trouble)
            rows = self.features.with_roles(raw)
            for name, values in ((BAD, bad), (SPLIT, pa.array(codes))):
                if name in rows.column_names:
                    rows = rows.drop_columns([name])
                rows = rows.append_column(name, values)
            yield rows

    def quarantine(self, index: int) -> pa.Table:
        """The bad rows of one fragment: all raw columns, `__row_id` and `__bad`."""
        ids, reasons = [], []
        for rows in self.read(index):
            bad = rows.filter(pc.is_valid(rows[BAD]))
            ids.append(plain(bad[ROW_ID]))
            reasons.append(plain(bad[BAD]).cast(pa.string()))
        known, reason = pa.concat_arrays(ids), pa.concat_arrays(reasons)
        kept = []
        for raw in self.log.read(self.fragments[index]):
            at = pc.index_in(raw[ROW_ID], known)
            found = pc.is_valid(at)
            bad = raw.filter(found)
            where = plain(at.filter(found))
            kept.append(bad.set_column(bad.column_names.index(BAD), BAD, reason.take(where)))
        return pa.concat_tables(kept).combine_chunks()

    def fragment_of(self, row_ids: np.ndarray) -> np.ndarray:
        """Position in `fragments` of each row."""
        starts = np.array([f.file_index << 40 | f.first_row for f in self.fragments])
        order = np.argsort(starts, kind="stable")
        return order[np.searchsorted(starts[order], row_ids, side="right") - 1]

    def place(self, row_id: int) -> str:
        """File and row (from 1) of a row, for messages."""
        fragment = self.fragments[int(self.fragment_of(np.array([row_id]))[0])]
        return f"{fragment.file}, row {(row_id & (1 << 40) - 1) + 1:,}"


def good(rows: pa.Table) -> pa.Table:
    """The rows that are not bad, without the column that says so."""
    kept = rows if rows[BAD].null_count == rows.num_rows else rows.filter(pc.is_null(rows[BAD]))
    return kept.drop_columns([BAD])


@dataclass(frozen=True)
class Findings:
    """What blocks of checked rows tell before anything is fitted; merging needs no order."""

    rows: tuple[int, ...] = (0,) * len(SPLITS)
    """Good rows of each split."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Bad rows by reason."""
    bad_fragments: frozenset[int] = frozenset()
    observed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Rows of each split whose label is known, by task."""
    sums: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Sum of the known labels of each split, by task."""
    largest: dict[str, float] = field(default_factory=dict)
    """Largest absolute value of each statistic."""
    times: tuple[tuple[int, int] | None, ...] = (None,) * len(SPLITS)
    """First and last time of each split (milliseconds)."""
    summaries: tuple[Json, ...] = ()
    """Summaries of the features over training rows."""

    def label_means(self, task: str) -> list[float | None]:
        """Mean label of each split, to six digits (None: no label is known)."""
        pairs = zip(self.sums[task], self.observed[task], strict=True)
        return [float(f"{total / count:.6g}") if count else None for total, count in pairs]

    @property
    def bad(self) -> int:
        """Number of bad rows."""
        return sum(self.reasons.values())

    @property
    def total(self) -> int:
        """Number of rows, good and bad."""
        return sum(self.rows) + self.bad


def find(reader: RowReader, rows: pa.Table) -> Findings:
    """What one block of checked rows tells."""
    bad = rows.filter(pc.is_valid(rows[BAD]))
    reasons = {
        str(line["values"]): int(line["counts"]) for line in pc.value_counts(bad[BAD]).to_pylist()
    }
    fragments = np.unique(reader.fragment_of(bad[ROW_ID].to_numpy())) if bad.num_rows else []
    rows = good(rows)
    codes = rows[SPLIT].to_numpy()
    time = rows["__time"].to_numpy()
    parts = [codes == code for code in range(len(SPLITS))]
    labels = {
        name: pc.fill_null(rows[f"__label.{name}"], float("nan")).to_numpy()
        for name in reader.features.tasks
    }
    values = {
        name: observed_value(rows, demand.value)
        for name, demand in reader.features.demands().statistics.items()
    }
    training = rows.filter(pa.array(codes == TRAIN))
    return Findings(
        rows=tuple(int(part.sum()) for part in parts),
        reasons=reasons,
        bad_fragments=frozenset(int(f) for f in fragments),
        observed={
            name: tuple(int((part & ~np.isnan(label)).sum()) for part in parts)
            for name, label in labels.items()
        },
        sums={
            name: tuple(float(np.nansum(label[part])) for part in parts)
            for name, label in labels.items()
        },
        largest={
            name: float(np.nanmax(np.abs(value), initial=0.0)) for name, value in values.items()
        },
        times=tuple(
            (int(time[part].min()), int(time[part].max())) if part.any() else None for part in parts
        ),
        summaries=(reader.features.summarise(training),) if training.num_rows else (),
    )


def merge(features: FeatureSet, parts: list[Findings]) -> Findings:
    """Findings of several blocks as one; the summaries become one."""
    reasons: dict[str, int] = {}
    for part in parts:
        for reason, count in part.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    summaries = [summary for part in parts for summary in part.summaries]
    spans = [[p.times[i] for p in parts if p.times[i]] for i in range(len(SPLITS))]
    return Findings(
        rows=tuple(sum(column) for column in zip(*(p.rows for p in parts), strict=True)),
        reasons=reasons,
        bad_fragments=frozenset().union(*(p.bad_fragments for p in parts)),
        observed={
            name: tuple(sum(p.observed[name][i] for p in parts) for i in range(len(SPLITS)))
            for name in features.tasks
        },
        sums={
            name: tuple(sum(p.sums[name][i] for p in parts) for i in range(len(SPLITS)))
            for name in features.tasks
        },
        largest={
            name: max(p.largest[name] for p in parts) for name in features.demands().statistics
        },
        times=tuple(
            (min(s[0] for s in span if s), max(s[1] for s in span if s)) if span else None
            for span in spans
        ),
        summaries=(features.merge(summaries),) if summaries else (),
    )


# ---------------------------------------------------------------------------------------------
# Vocabularies


def count_values(features: FeatureSet, rows: pa.Table, parts: int) -> list[dict[str, pa.Table]]:
    """Value counts of the good training rows, cut into `parts` by a hash of the value."""
    rows = good(rows)
    training = rows.filter(pc.equal(rows[SPLIT], TRAIN))
    counts = features.count(training)
    if parts == 1:
        return [counts]
    cut: list[dict[str, pa.Table]] = [{} for _ in range(parts)]
    for name, table in counts.items():
        part = hash_values(plain(table["value"]), seed=1) % np.uint64(parts)
        for number in range(parts):
            cut[number][name] = table.filter(pa.array(part == number)).combine_chunks()
    return cut


def most_frequent(counts: pa.Table, demand: VocabularyDemand) -> pa.Table:
    """Those counts that can still enter the vocabulary: bounded by its size."""
    kept = counts.filter(pc.greater_equal(counts["count"], demand.min_count))
    if kept.num_rows <= demand.max_size:
        return kept
    order = pc.sort_indices(
        kept, sort_keys=[("count", "descending", "at_end"), ("value", "ascending", "at_end")]
    )
    return kept.take(order[: demand.max_size]).cast(COUNTS)
