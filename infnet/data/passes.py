"""Causal columns from rows sorted by (key, time, row id): histories and statistics, block by block.

A sorted log is cut into blocks anywhere, also inside a key and inside one millisecond of a key.
Three steps, none of which holds more than one block:

    `scan.summarise(block)`   its first and last key as `Segment`s: what other blocks must know
    `fold(summaries)`         one walk over the boundaries: the state carried into each block, and
                              the totals of keys that lie in several blocks
    `scan.emit(block, carry)` the derived columns of its rows

A row sees events of its key with **strictly earlier** time; events of one millisecond see nothing
of each other, wherever the block ends. Values are summed as integers (`scale_of`), so no result
depends on how the rows were cut.

Training rows see training rows. A valid or test row sees training rows too (`frozen`), or every
earlier row (`rolling`). With the fold `leave_one_out` a training row sees all other training rows
of its key, and a valid or test row all of them (`frozen`) or the earlier rows (`rolling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infnet.features.base import HistoryDemand, StatisticDemand

KEY, TIME, ROW_ID, SPLIT = "__key", "__time", "__row_id", "__split"
TRAIN = 0

VALUE_BITS = 61


@dataclass(frozen=True)
class Statistic:
    """A statistic of a pass: which feature asks, and how its value becomes an integer."""

    name: str
    demand: StatisticDemand
    scale: int
    """The value is counted in units of 2^−scale."""


@dataclass(frozen=True)
class History:
    """A history of a pass, and the feature that asks for it."""

    name: str
    demand: HistoryDemand


@dataclass(frozen=True)
class Pass:
    """What one sorted pass computes: everything that has the same key."""

    key: tuple[str, ...]
    statistics: tuple[Statistic, ...] = ()
    histories: tuple[History, ...] = ()
    rolling: bool = False

    @property
    def variants(self) -> int:
        """1: what training rows left behind; 2: also what all rows left behind (rolling)."""
        return 2 if self.rolling else 1


def scale_of(largest: float, rows: int) -> int:
    """Binary digits after the point with which `rows` values up to `largest` sum without overflow.

    Whole numbers below 2^53 sum exactly; others are rounded once, by at most 2^−(scale+1), each.
    """
    bound = max(largest, 1e-300) * max(rows, 1)
    return int(np.clip(VALUE_BITS - np.ceil(np.log2(bound)), -1000, 1000))


@dataclass(frozen=True)
class Segment:
    """All rows of one key up to a boundary, as far as later rows of the key must know them.

    Arrays have one row per variant and one column per statistic; event tables stand in that order
    too.
    """

    key: int
    last_time: int
    counts: np.ndarray
    sums: np.ndarray
    pending_counts: np.ndarray
    """The part of `counts` at `last_time`, which rows of that time must not see."""
    pending_sums: np.ndarray
    committed: list[pa.Table] = field(default_factory=list)
    """Most recent events before `last_time`, oldest first."""
    pending: list[pa.Table] = field(default_factory=list)
    """Most recent events at `last_time`."""

    def events(self, number: int) -> pa.Table:
        """Both, oldest first."""
        return pa.concat_tables([self.committed[number], self.pending[number]])


def combine(plan: Pass, before: Segment, after: Segment) -> Segment:
    """Two neighbouring stretches of one key as one."""
    assert before.key == after.key
    assert before.last_time <= after.last_time
    limits = [h.demand.max_length for h in plan.histories for _ in range(plan.variants)]
    numbers = range(len(limits))
    if before.last_time == after.last_time:  # all of `after` is of that one millisecond
        return Segment(
            key=after.key,
            last_time=after.last_time,
            counts=before.counts + after.counts,
            sums=before.sums + after.sums,
            pending_counts=before.pending_counts + after.pending_counts,
            pending_sums=before.pending_sums + after.pending_sums,
            committed=before.committed,
            pending=[_last([before.pending[i], after.pending[i]], limits[i]) for i in numbers],
        )
    return Segment(
        key=after.key,
        last_time=after.last_time,
        counts=before.counts + after.counts,
        sums=before.sums + after.sums,
        pending_counts=after.pending_counts,
        pending_sums=after.pending_sums,
        committed=[
            _last([before.committed[i], before.pending[i], after.committed[i]], limits[i])
            for i in numbers
        ],
        pending=after.pending,
    )


def _last(tables: Sequence[pa.Table], limit: int) -> pa.Table:
    table = pa.concat_tables(tables)
    return table.slice(max(0, table.num_rows - limit)).combine_chunks()


# ---------------------------------------------------------------------------------------------
# The walk over the boundaries


@dataclass(frozen=True)
class Summary:
    """What the walk must know of a block: its first and its last key (one object if it has one)."""

    head: Segment
    tail: Segment


@dataclass(frozen=True)
class Carry:
    """What a block must know of the others."""

    state: Segment | None
    """The earlier rows of its first key, if there are any."""
    head_total: tuple[np.ndarray, np.ndarray]
    """(counts, sums) of all rows of its first key, in all blocks; first axis the variants."""
    tail_total: tuple[np.ndarray, np.ndarray]


def fold(plan: Pass, summaries: Sequence[Summary]) -> tuple[list[Carry], list[list[Segment]]]:
    """The carry of every block, and the boundary keys in the order in which they are finished.

    `finished[b]` are the keys to write before the inner keys of block b; `finished[-1]` the last of
    all.
    """
    states: list[Segment | None] = []
    finished: list[list[Segment]] = []
    totals: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    state: Segment | None = None
    for summary in summaries:
        done: list[Segment] = []
        if state is not None and state.key == summary.head.key:
            states.append(state)
            current = combine(plan, state, summary.head)
        else:
            states.append(None)
            if state is not None:
                done.append(state)
            current = summary.head
        if summary.tail is not summary.head and summary.tail.key != summary.head.key:
            done.append(current)
            current = summary.tail
        state = current
        finished.append(done)
    finished.append([state] if state is not None else [])
    for done in finished:
        for segment in done:
            totals[segment.key] = segment.counts, segment.sums
    carries = [
        Carry(state, totals[summary.head.key], totals[summary.tail.key])
        for state, summary in zip(states, summaries, strict=True)
    ]
    return carries, finished
