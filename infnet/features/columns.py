"""Raw Arrow columns as the features read them: text, numbers, lists. No loop over rows.

Every function gives for a row what it would give for that row alone.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from rayrun.config import ConfigError

pc: Any = pyarrow.compute
"""Arrow's kernels: made when Arrow is imported, so no type checker knows their names."""

LARGEST = float(np.finfo(np.float32).max)
"""Numbers leave this room as float32."""

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


def column(rows: pa.Table, name: str) -> pa.Array:
    """One column as one array, dictionaries decoded.

    Raises:
        ConfigError: the table has no such column.
    """
    at = rows.schema.get_field_index(name)
    if at < 0:
        raise ConfigError(
            f"the column {name!r} is required, the rows have {', '.join(rows.column_names)}"
        )
    return plain(rows.column(at))


def plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array without chunks or dictionary."""
    if isinstance(values, pa.ChunkedArray):
        # combine_chunks would copy a single chunk: a whole look-up table for one request
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values


def text(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Values as text, so that 7 read from CSV, Parquet or JSON is one category; nulls stay null.

    A whole number is written without a point (7.0 is 7), NaN is null.
    """
    values = plain(values)
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    try:
        return values.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise ConfigError(
            "a categorical value must be a number, text, a truth value or a date, "
            f"found the type {kind}; lists are read by `sequence` (column) and `window`"
        ) from None


def numbers(values: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(float64 values, NaN where missing; bool: the raw value is there but is no finite number).

    Null, NaN and empty text are missing. Unreadable text and infinities are bad, and given as
    missing.
    """
    values = plain(values)
    kind = values.type
    bad = np.zeros(len(values), dtype=bool)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        trimmed = pc.utf8_trim_whitespace(values.cast(pa.string()))
        readable = pc.fill_null(pc.match_substring_regex(trimmed, _NUMBER), False)
        empty = pc.fill_null(pc.equal(trimmed, ""), True)
        bad = ~(as_numpy(readable) | as_numpy(empty))
        values = pc.if_else(readable, trimmed, pa.scalar(None, pa.string())).cast(pa.float64())
    elif pa.types.is_boolean(kind):
        values = values.cast(pa.int8()).cast(pa.float64())
    elif not pa.types.is_float64(kind):
        try:
            values = values.cast(pa.float64(), safe=False)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            raise ConfigError(f"a number is required, found a column of type {kind}") from None
    found = as_numpy(values)
    infinite = np.isinf(found)
    return np.where(infinite, np.nan, found), bad | infinite


def check_number(schema: pa.Schema, name: str, where: str) -> None:
    """Refuse a column whose type `numbers` cannot read; `where` is the key in the config.

    Raises:
        ConfigError: dates, lists and the like.
    """
    kind = schema.field(name).type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (number or pa.types.is_string(kind)):
        raise ConfigError(f"{where}: the column {name!r} must hold numbers, found the type {kind}")


def check_value(schema: pa.Schema, name: str, where: str) -> None:
    """Refuse a column that holds several values per row.

    Raises:
        ConfigError: lists and structs.
    """
    kind = schema.field(name).type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ConfigError(
            f"{where}: the column {name!r} must hold one value per row, found the type {kind}. "
            "A list of ids is read by `type: sequence` with `column`, a list of numbers by "
            "`type: window`"
        )


def as_numpy(values: pa.Array) -> np.ndarray:
    """A primitive array as NumPy; nulls of floats become NaN."""
    if pa.types.is_floating(values.type) and values.null_count:
        values = pc.fill_null(values, float("nan"))
    return values.to_numpy(zero_copy_only=False)


def missing(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """True where null or NaN."""
    return as_numpy(pc.is_null(plain(values), nan_is_null=True))


def lists(values: pa.Array | pa.ChunkedArray, most: int) -> tuple[pa.Array, np.ndarray]:
    """(the last `most` elements of each row, one row after the other; how many each row has).

    A null list is empty.

    Raises:
        ConfigError: not a column of lists.
    """
    values = plain(values)
    kind = values.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise ConfigError(f"a column of lists is required, found the type {kind}")
    lengths = as_numpy(pc.fill_null(pc.list_value_length(values), 0)).astype(np.int64)
    elements = plain(values.flatten())
    if not len(lengths) or lengths.max() <= most:
        return elements, lengths
    kept = np.minimum(lengths, most)
    return elements.take(pa.array(ranges(np.cumsum(lengths) - kept, kept))), kept


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, …, start + length − 1 of each pair, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def as_lists(elements: np.ndarray | pa.Array, lengths: np.ndarray) -> pa.Array:
    """The inverse of `lists`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(elements))
