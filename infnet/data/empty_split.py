"""Splits without rows, told as early as the log lets one know.

A small log is judged by its rows, of which the columns that decide are read; a long one by the
range of the column that it is split by, where its files say it (Parquet; the simulator). What then
remains, long logs of text above all, is judged when it has been read (`infnet.data.prepare`).
"""

from collections.abc import Sequence

import pyarrow as pa

from infnet.config import ColumnSplit, TimeSplit
from infnet.data.rows import RowReader
from infnet.data.shards import SPLITS
from infnet.data.split import NO_SPLIT, about_unit, as_written, moment
from rayrun.config import ConfigError
from rayrun.data.columns import to_milliseconds

QUICK_ROWS = 1 << 18
QUICK_BYTES = 16 << 20
"""Logs up to this size on disk (where it does not say its rows) are read at once, in a second."""

Span = tuple[int, int] | None
"""First and last time, milliseconds; None: there is no row, or no time."""


def refuse_early(reader: RowReader) -> None:
    """Nothing, or what `refuse` says, before Ray starts or any other work is done.

    Raises:
        ConfigError: a split is empty for certain; that none is raised proves nothing.
    """
    if _is_small(reader):
        _refuse_by_rows(reader)
    elif isinstance(reader.splitter.split, TimeSplit):
        _refuse_by_range(reader)


def refuse(reader: RowReader, rows: Sequence[int], times: Sequence[Span]) -> None:
    """Every split must have rows; a log that says itself what is test may have none yet.

    Args:
        reader: of the log.
        rows: number of rows of each split.
        times: first and last time of each split.

    Raises:
        ConfigError: one has none.
    """
    may_lack = "test" if isinstance(reader.splitter.split, ColumnSplit) else ""
    empty = [
        name for name, count in zip(SPLITS, rows, strict=True) if not count and name != may_lack
    ]
    if not empty:
        return
    found = [
        f"{name} {count:,} rows" + (f" ({moment(span[0])} to {moment(span[1])})" if span else "")
        for name, count, span in zip(SPLITS, rows, times, strict=True)
    ]
    raise _error(reader, empty, "; ".join(found), times)


# ---------------------------------------------------------------------------------------------


def _error(reader: RowReader, empty: list[str], found: str, times: Sequence[Span]) -> ConfigError:
    splitter = reader.splitter
    ends = [end for span in times if span for end in span]
    whole = f"; the log goes from {moment(min(ends))} to {moment(max(ends))}" if ends else ""
    return ConfigError(
        f"data.split leaves {' and '.join(empty)} empty: {found}; the split is by "
        f"{splitter.column}: {as_written(splitter.split)}{whole}; move the cuts"
        + about_unit(reader.log.columns, times)
    )


def _refuse_by_range(reader: RowReader) -> None:
    splitter = reader.splitter
    ends = reader.log.bounds(splitter.column)
    if ends is None:
        return
    kind = reader.log.schema.field(splitter.column).type
    values = pa.table({splitter.column: pa.array(ends, kind)})
    first, last = (int(code) for code in splitter.codes(values))
    if NO_SPLIT in (first, last):
        return
    # No row is before the first or after the last: what lies outside of them is empty.
    empty = [name for at, name in enumerate(SPLITS) if not first <= at <= last]
    if empty:
        time = reader.log.columns.time
        span: Span = None
        if time is not None and time.column == splitter.column:
            low, high = to_milliseconds(values[splitter.column], time.unit).to_pylist()
            span = (low, high)
        found = f"no row is there, {splitter.column} goes from {ends[0]} to {ends[1]}"
        raise _error(reader, empty, found, [span])


def _is_small(reader: RowReader) -> bool:
    known = [fragment.rows for fragment in reader.fragments]
    if None in known:
        return sum(fragment.bytes for fragment in reader.fragments) <= QUICK_BYTES
    return sum(count or 0 for count in known) <= QUICK_ROWS


def _refuse_by_rows(reader: RowReader) -> None:
    splitter, time = reader.splitter, reader.log.columns.time
    columns = {splitter.column, *([time.column] if time else [])}
    rows = [0] * len(SPLITS)
    times: list[Span] = [None] * len(SPLITS)
    for fragment in reader.fragments:
        for raw in reader.log.read(fragment, sorted(columns)):
            codes = splitter.codes(raw)
            if (codes == NO_SPLIT).any():
                return  # a bad row: whether there are too many is told with all reasons, later
            moments = to_milliseconds(raw[time.column], time.unit) if time else None
            for at in range(len(SPLITS)):
                rows[at] += int((codes == at).sum())
                if moments is not None:
                    times[at] = _longer(times[at], moments.filter(pa.array(codes == at)))
    refuse(reader, rows, times)


def _longer(span: Span, moments: pa.Array) -> Span:
    known = moments.drop_null().to_numpy()
    if not len(known):
        return span
    low, high = int(known.min()), int(known.max())
    return (low, high) if span is None else (min(span[0], low), max(span[1], high))
