"""One block of sorted rows: its boundary summary, the derived columns of its rows, its look-ups.

See `passes` for what a row may see.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from infnet.data.passes import (
    KEY,
    SPLIT,
    TIME,
    TRAIN,
    Carry,
    History,
    Pass,
    Segment,
    Statistic,
    Summary,
)
from infnet.features.statistic import observed_value


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


def summarise(plan: Pass, rows: pa.Table) -> tuple[Summary, pa.Table]:
    """Boundary summary of a block, and the look-up rows of the keys that lie inside it."""
    block = Block(plan, rows)
    runs = len(block.key_starts)
    head = block.segment(0)
    tail = block.segment(runs - 1) if runs > 1 else head
    return Summary(head, tail), _inside(block)


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
