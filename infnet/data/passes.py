"""Causal columns from rows sorted by (key, time, row id): histories and statistics, block by block.

A sorted log is cut into blocks anywhere, also inside a key and inside one millisecond of a key. Three
steps, none of which holds more than one block:

    `summarise(block)`     its first and last key as `Segment`s: what a later block must know of them
    `fold(summaries)`      one walk over the boundaries: the state carried into each block, and the totals
                           of keys that lie in several blocks
    `emit(block, carry)`   the derived columns of its rows

A row sees events of its key with **strictly earlier** time; events of one millisecond see nothing of each
other, wherever the block ends. Values are summed as integers (`Scale`), so that no result depends on how
the rows were cut.

Training rows see training rows. A valid or test row sees training rows too (`frozen`), or every earlier
row (`rolling`). With the fold `leave_one_out` a training row sees all other training rows of its key, and a
valid or test row all of them (`frozen`) or the earlier rows (`rolling`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infnet.features.base import HistoryDemand, StatisticDemand
from infnet.features.statistic import observed_value

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

    Arrays have one row per variant and one column per statistic; event tables stand in that order too.
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
# One block


class Block:
    """A sorted block with its runs of equal key and of equal (key, time), and cumulative sums."""

    def __init__(self, plan: Pass, rows: pa.Table) -> None:
        self.plan, self.rows = plan, rows
        self.key, self.time = numpy(rows, KEY), numpy(rows, TIME)
        self.train = numpy(rows, SPLIT) == TRAIN
        count = len(self.key)
        new_key = np.ones(count, bool)
        new_key[1:] = self.key[1:] != self.key[:-1]
        new_tie = new_key.copy()
        new_tie[1:] |= self.time[1:] != self.time[:-1]
        self.key_starts = np.flatnonzero(new_key)
        self.key_ends = np.append(self.key_starts[1:], count)
        self.key_run = np.cumsum(new_key) - 1
        self.tie_start = np.flatnonzero(new_tie)[np.cumsum(new_tie) - 1]
        seen = [self.train, np.ones(count, bool)][: plan.variants]
        values = [quantised(rows, statistic) for statistic in plan.statistics]
        width = len(values)
        self.value = (
            np.stack([v for v, _ in values], 1) if values else np.zeros((count, 0), np.int64)
        )
        self.observed = (
            np.stack([o for _, o in values], 1) if values else np.zeros((count, 0), bool)
        )
        shape = (plan.variants, count + 1, width)
        self.cum_count, self.cum_sum = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for variant, mask in enumerate(seen):
            counted = self.observed & mask[:, None]
            np.cumsum(counted, axis=0, out=self.cum_count[variant, 1:])
            np.cumsum(self.value * counted, axis=0, out=self.cum_sum[variant, 1:])
        self.events = [
            _Events(_is_event(rows, history) & mask, rows, history)
            for history in plan.histories
            for mask in seen
        ]

    def segment(self, run: int) -> Segment:
        """The rows of one run of equal keys."""
        start, stop = int(self.key_starts[run]), int(self.key_ends[run])
        last = int(self.tie_start[stop - 1])
        limits = [
            h.demand.max_length for h in self.plan.histories for _ in range(self.plan.variants)
        ]
        return Segment(
            key=int(self.key[start]),
            last_time=int(self.time[stop - 1]),
            counts=self.cum_count[:, stop] - self.cum_count[:, start],
            sums=self.cum_sum[:, stop] - self.cum_sum[:, start],
            pending_counts=self.cum_count[:, stop] - self.cum_count[:, last],
            pending_sums=self.cum_sum[:, stop] - self.cum_sum[:, last],
            committed=[e.last(start, last, n) for e, n in zip(self.events, limits, strict=True)],
            pending=[e.last(last, stop, n) for e, n in zip(self.events, limits, strict=True)],
        )


class _Events:
    """The events of one behaviour among the rows of a block."""

    def __init__(self, is_event: np.ndarray, rows: pa.Table, history: History) -> None:
        self.before = np.concatenate([[0], np.cumsum(is_event)])
        """Events among the first i rows of the block."""
        self.table = (
            rows.select([*history.demand.columns, TIME]).filter(pa.array(is_event)).combine_chunks()
        )

    def last(self, start: int, stop: int, limit: int) -> pa.Table:
        first, last = int(self.before[start]), int(self.before[stop])
        first = max(first, last - limit)
        # a copy, not a view: a view would carry the whole block along
        return self.table.take(pa.array(np.arange(first, last)))


def _is_event(rows: pa.Table, history: History) -> np.ndarray:
    where = history.demand.where
    return np.ones(rows.num_rows, bool) if where is None else where.holds(rows)


def quantised(rows: pa.Table, statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
    """(int64 values in units of 2^−scale, 0 where not observed; observed)."""
    values = observed_value(rows, statistic.demand.value)
    observed = ~np.isnan(values)
    whole = np.rint(np.ldexp(np.where(observed, values, 0.0), statistic.scale)).astype(np.int64)
    return whole, observed


def numpy(rows: pa.Table, name: str) -> np.ndarray:
    """A column without nulls as NumPy."""
    return rows.column(name).to_numpy()


# ---------------------------------------------------------------------------------------------
# The walk over the boundaries


@dataclass(frozen=True)
class Summary:
    """What the walk must know of a block: its first and its last key (the same object if it has one)."""

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


def summarise(plan: Pass, rows: pa.Table) -> tuple[Summary, pa.Table]:
    """Boundary summary of a block, and the look-up rows of the keys that lie inside it."""
    block = Block(plan, rows)
    runs = len(block.key_starts)
    head = block.segment(0)
    tail = block.segment(runs - 1) if runs > 1 else head
    return Summary(head, tail), _inside(block)


def fold(plan: Pass, summaries: Sequence[Summary]) -> tuple[list[Carry], list[list[Segment]]]:
    """The carry of every block; and for every block (and the end) the boundary keys finished before its own.

    `finished[b]` are the keys to write before the inner keys of block b; `finished[-1]` the last of all.
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


# ---------------------------------------------------------------------------------------------
# Derived columns


def emit(plan: Pass, rows: pa.Table, carry: Carry, cells: int) -> Iterator[pa.Table]:
    """The rows with their derived columns, in pieces of at most about `cells` history events.

    Adds `__statistic.<name>.count`, `__statistic.<name>.sum` (float64) and `__history.<name>`
    (list<struct<event columns…, __time>>, oldest first).
    """
    block = Block(plan, rows)
    rows = _with_statistics(block, carry)
    if not plan.histories:
        yield rows
        return
    longest = sum(history.demand.max_length for history in plan.histories)
    step = max(256, cells // longest)
    for start in range(0, rows.num_rows, step):
        stop = min(start + step, rows.num_rows)
        piece = rows.slice(start, stop - start)
        for number, history in enumerate(plan.histories):
            column = _history(block, carry, history, number, slice(start, stop))
            piece = piece.append_column(f"__history.{history.name}", column)
        yield piece


def _with_statistics(block: Block, carry: Carry) -> pa.Table:
    plan, rows = block.plan, block.rows
    if not plan.statistics:
        return rows
    start = block.key_starts[block.key_run]
    counts = block.cum_count[:, block.tie_start] - block.cum_count[:, start]
    sums = block.cum_sum[:, block.tie_start] - block.cum_sum[:, start]
    if carry.state is not None:
        state, end = carry.state, int(block.key_ends[0])
        at_last = (block.time[:end] == state.last_time)[:, None]
        counts[:, :end] += state.counts[:, None] - at_last * state.pending_counts[:, None]
        sums[:, :end] += state.sums[:, None] - at_last * state.pending_sums[:, None]
    total_counts = _totals(block.cum_count[0], block, carry.head_total[0], carry.tail_total[0])
    total_sums = _totals(block.cum_sum[0], block, carry.head_total[1], carry.tail_total[1])
    own = block.observed & block.train[:, None]
    visible = np.where(block.train | (not plan.rolling), 0, plan.variants - 1)
    everyone = np.arange(len(visible))
    for number, statistic in enumerate(plan.statistics):
        count, total = counts[visible, everyone, number], sums[visible, everyone, number]
        if statistic.demand.fold == "leave_one_out":
            whole = block.train | (not plan.rolling)
            own_value = block.value[:, number] * own[:, number]
            count = np.where(whole, total_counts[:, number] - own[:, number], count)
            total = np.where(whole, total_sums[:, number] - own_value, total)
        name = f"__statistic.{statistic.name}"
        rows = rows.append_column(f"{name}.count", pa.array(count.astype(np.float64)))
        rows = rows.append_column(f"{name}.sum", pa.array(np.ldexp(total, -statistic.scale)))
    return rows


def _totals(cumulative: np.ndarray, block: Block, head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Per row, the total of the training rows of its key over all blocks."""
    per_key = cumulative[block.key_ends] - cumulative[block.key_starts]
    per_key[0], per_key[-1] = head[0], tail[0]
    return per_key[block.key_run]


def _history(
    block: Block, carry: Carry, history: History, number: int, rows: slice
) -> pa.ListArray:
    plan = block.plan
    parts = []
    offset = 0
    start = np.empty(rows.stop - rows.start, np.int64)
    end = np.empty_like(start)
    visible = np.where(block.train[rows] | (not plan.rolling), 0, plan.variants - 1)
    first_run = block.key_run[rows] == 0
    key_start = block.key_starts[block.key_run[rows]]
    tie_start = block.tie_start[rows]
    for variant in range(plan.variants):
        index = number * plan.variants + variant
        events = block.events[index]
        carried, held = 0, 0
        if carry.state is not None:
            carried, held = (
                t.num_rows for t in (carry.state.events(index), carry.state.pending[index])
            )
            parts.append(carry.state.events(index))
        parts.append(events.table)
        first = offset + np.where(first_run, 0, carried + events.before[key_start])
        last = offset + carried + events.before[tie_start]
        if carry.state is not None and held:
            last -= held * (first_run & (block.time[rows] == carry.state.last_time))
        mine = visible == variant
        end[mine] = last[mine]
        start[mine] = np.maximum(first, last - history.demand.max_length)[mine]
        offset += carried + events.table.num_rows
    return _lists(pa.concat_tables(parts), start, end)


def _lists(events: pa.Table, start: np.ndarray, end: np.ndarray) -> pa.ListArray:
    """One list per row: events `start` (inclusive) to `end` (exclusive)."""
    lengths = end - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
    values = events.combine_chunks().to_struct_array()
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.take(pa.array(flat)))


# ---------------------------------------------------------------------------------------------
# Frozen look-ups: what training rows left behind, per key


def _inside(block: Block) -> pa.Table:
    """Look-up rows of all keys of a block but its first and last."""
    plan = block.plan
    inner = slice(1, len(block.key_starts) - 1)
    starts, ends = block.key_starts[inner], block.key_ends[inner]
    columns: dict[str, pa.Array] = {"key": pa.array(block.key[starts], pa.int64())}
    for number, statistic in enumerate(plan.statistics):
        count = block.cum_count[0, ends, number] - block.cum_count[0, starts, number]
        total = block.cum_sum[0, ends, number] - block.cum_sum[0, starts, number]
        columns[f"{statistic.name}.count"] = pa.array(count.astype(np.float64))
        columns[f"{statistic.name}.sum"] = pa.array(np.ldexp(total, -statistic.scale))
    for number, history in enumerate(plan.histories):
        events = block.events[number * plan.variants]
        last = events.before[ends]
        first = np.maximum(events.before[starts], last - history.demand.max_length)
        columns[f"{history.name}.events"] = _lists(events.table, first, last)
    return pa.table(columns)


def boundary_rows(plan: Pass, segments: Iterable[Segment], like: pa.Schema) -> pa.Table:
    """Look-up rows of finished boundary keys."""
    tables = []
    for segment in segments:
        columns: dict[str, pa.Array] = {"key": pa.array([segment.key], pa.int64())}
        for number, statistic in enumerate(plan.statistics):
            total = np.ldexp(segment.sums[0, number], -statistic.scale)
            columns[f"{statistic.name}.count"] = pa.array([float(segment.counts[0, number])])
            columns[f"{statistic.name}.sum"] = pa.array([float(total)])
        for number, history in enumerate(plan.histories):
            events = segment.events(number * plan.variants)
            limit = history.demand.max_length
            first = np.array([max(0, events.num_rows - limit)])
            columns[f"{history.name}.events"] = _lists(events, first, np.array([events.num_rows]))
        tables.append(pa.table(columns).cast(like))
    return pa.concat_tables([like.empty_table(), *tables])
