"""Columns of a shard → NumPy arrays, for the batches of training and for a server without torch.

Vectorised: no loop over rows. Shapes: B rows, M categorical fields, K dense columns, n events of a
sequence, f ids per event.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from infnet.features.columns import as_numpy, pc, plain, ranges
from infnet.schema import Schema, SequenceSlot
from rayrun.config import ConfigError


@dataclass(frozen=True)
class SequenceArrays:
    """Past events of one behaviour type, left-aligned, oldest first, padded with id 0."""

    ids: Int64[np.ndarray, "B n f"]
    ages: Float[np.ndarray, "B n"]
    """Days between the event and the row; 0 at padding."""
    lengths: Int64[np.ndarray, " B"]


@dataclass(frozen=True)
class Arrays:
    """What a model reads of some rows, in the column order of the schema."""

    ids: Int64[np.ndarray, "B M"]
    dense: Float[np.ndarray, "B K"]
    sequences: dict[str, SequenceArrays]

    def __len__(self) -> int:
        return len(self.ids)


def to_arrays(table: pa.Table, schema: Schema) -> Arrays:
    """The rows of a table with the columns of a shard.

    Sequences are padded to the longest of these rows (at least 1).

    Raises:
        ConfigError: a column is missing: the table was encoded for another schema.
    """
    rows = table.num_rows
    ids = np.empty((rows, len(schema.fields)), dtype=np.int64)
    for at, slot in enumerate(schema.fields):
        ids[:, at] = as_numpy(shard_column(table, f"c.{slot.name}"))
    dense = np.empty((rows, schema.dense_width), dtype=np.float32)
    starts = schema.dense_starts
    for slot in schema.dense:
        start = starts[slot.name]
        dense[:, start : start + slot.width] = _block(table, f"d.{slot.name}", slot.width)
    sequences = {slot.name: _sequence(table, slot) for slot in schema.sequences}
    return Arrays(ids=ids, dense=dense, sequences=sequences)


def shard_column(table: pa.Table, name: str) -> pa.Array:
    """One column of a shard.

    Raises:
        ConfigError: the table has no such column.
    """
    at = table.schema.get_field_index(name)
    if at < 0:
        raise ConfigError(
            f"the shard has no column {name!r}, which the schema needs: it was encoded for another "
            "schema; run `infnet prepare` with this config"
        )
    return plain(table.column(at))


def _block(table: pa.Table, name: str, width: int) -> np.ndarray:
    values = shard_column(table, name)
    if pa.types.is_fixed_size_list(values.type):
        found = values.type.list_size
        flat = as_numpy(values.flatten())
    else:
        found, flat = 1, as_numpy(values)
    if found != width:
        raise ConfigError(
            f"the column {name!r} has {found} numbers per row, the schema needs {width}: it was "
            "encoded for another schema; run `infnet prepare` with this config"
        )
    return flat.reshape(-1, width)


def _sequence(table: pa.Table, slot: SequenceSlot) -> SequenceArrays:
    ages = shard_column(table, f"s.{slot.name}.ages")
    lengths = as_numpy(pc.list_value_length(ages)).astype(np.int64)
    rows, longest = len(lengths), max(1, int(lengths.max(initial=0)))
    # flat place of every event in the padded [rows, longest] rectangle
    full = bool((lengths == longest).all())  # one history for all rows: much cheaper
    place = slice(None) if full else ranges(np.arange(rows) * longest, lengths)
    padded_ages = np.zeros(rows * longest, dtype=np.float32)
    padded_ages[place] = as_numpy(ages.flatten())
    ids = np.zeros((rows * longest, len(slot.fields)), dtype=np.int64)
    for at, field in enumerate(slot.fields):
        ids[place, at] = as_numpy(shard_column(table, f"s.{slot.name}.ids.{field}").flatten())
    return SequenceArrays(
        ids=ids.reshape(rows, longest, len(slot.fields)),
        ages=padded_ages.reshape(rows, longest),
        lengths=lengths,
    )
