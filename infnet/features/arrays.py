"""Columns of a shard → NumPy arrays, for the batches of training and for a server without torch.

Vectorised: no loop over rows. Shapes: B rows, M categorical fields, K dense columns, H histories
(B, or 1 where all rows have the same), n events of a sequence, f ids per event.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from infnet.features.columns import as_numpy, pc, plain, ranges
from infnet.schema import DenseSlot, Schema, SequenceSlot
from rayrun.config import ConfigError


@dataclass(frozen=True)
class SequenceArrays:
    """Past events of one behaviour type, left-aligned, oldest first, padded with id 0."""

    ids: Int64[np.ndarray, "H n f"]
    ages: Float[np.ndarray, "H n"]
    """Days between the event and the row; 0 at padding."""
    lengths: Int64[np.ndarray, " H"]


@dataclass(frozen=True)
class Arrays:
    """What a model reads of some rows, in the column order of the schema."""

    ids: Int64[np.ndarray, "B M"]
    dense: Float[np.ndarray, "B K"]
    sequences: dict[str, SequenceArrays]
    """Either all have one history per row, or all have one for all rows (`one_history`)."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def one_history(self) -> bool:
        """Every sequence stands once, for all rows."""
        return all(len(s.lengths) == 1 for s in self.sequences.values())

    def per_row(self) -> "Arrays":
        """The same with a history for each row."""
        count = len(self)
        if all(len(one.lengths) == count for one in self.sequences.values()):
            return self
        return replace(
            self,
            sequences={
                name: one
                if len(one.lengths) == count
                else SequenceArrays(
                    ids=np.repeat(one.ids, count, axis=0),
                    ages=np.repeat(one.ages, count, axis=0),
                    lengths=np.repeat(one.lengths, count),
                )
                for name, one in self.sequences.items()
            },
        )


def together(parts: Sequence[Arrays]) -> Arrays:
    """The rows of all parts (of one schema), in order, each with its history.

    One part is itself. Shorter sequences are padded to the longest.
    """
    if len(parts) == 1:
        return parts[0]
    parts = [part.per_row() for part in parts]
    return Arrays(
        ids=np.concatenate([part.ids for part in parts]),
        dense=np.concatenate([part.dense for part in parts]),
        sequences={
            name: _sequences_together([part.sequences[name] for part in parts])
            for name in parts[0].sequences
        },
    )


def _sequences_together(parts: Sequence[SequenceArrays]) -> SequenceArrays:
    rows = sum(len(part.lengths) for part in parts)
    longest = max(part.ids.shape[1] for part in parts)
    ids = np.zeros((rows, longest, parts[0].ids.shape[2]), dtype=np.int64)
    ages = np.zeros((rows, longest), dtype=np.float32)
    start = 0
    for part in parts:
        stop, events = start + len(part.lengths), part.ids.shape[1]
        ids[start:stop, :events] = part.ids
        ages[start:stop, :events] = part.ages
        start = stop
    return SequenceArrays(ids=ids, ages=ages, lengths=np.concatenate([p.lengths for p in parts]))


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
        values = shard_column(table, f"d.{slot.name}")
        dense[:, start : start + slot.width] = dense_block(values, slot)
    sequences = {slot.name: sequence_of(table, slot) for slot in schema.sequences}
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


def dense_block(values: pa.Array, slot: DenseSlot) -> Float[np.ndarray, "B width"]:
    """The encoded numbers of one slot.

    Raises:
        ConfigError: another number of them per row.
    """
    if pa.types.is_fixed_size_list(values.type):
        found = values.type.list_size
        flat = as_numpy(values.flatten())
    else:
        found, flat = 1, as_numpy(values)
    if found != slot.width:
        raise ConfigError(
            f"the column 'd.{slot.name}' has {found} numbers per row, the schema needs "
            f"{slot.width}: it was encoded for another schema; run `infnet prepare` with this "
            "config"
        )
    return flat.reshape(-1, slot.width)


def sequence_of(table: pa.Table, slot: SequenceSlot) -> SequenceArrays:
    """The encoded events of one sequence.

    Raises:
        ConfigError: a column is missing.
    """
    ages = shard_column(table, f"s.{slot.name}.ages")
    lengths = as_numpy(pc.list_value_length(ages)).astype(np.int64)
    ids = [as_numpy(shard_column(table, f"s.{slot.name}.ids.{f}").flatten()) for f in slot.fields]
    return left_aligned(ids, as_numpy(ages.flatten()), lengths)


def left_aligned(
    fields: Sequence[np.ndarray], ages: np.ndarray, lengths: Int64[np.ndarray, " H"]
) -> SequenceArrays:
    """Events of all histories, one history after the other, padded to the longest (at least 1).

    `fields` are the ids of each field.
    """
    rows, longest = len(lengths), max(1, int(lengths.max(initial=0)))
    # flat place of every event in the padded [rows, longest] rectangle
    full = bool((lengths == longest).all())  # one history for all rows: much cheaper
    place = slice(None) if full else ranges(np.arange(rows) * longest, lengths)
    padded_ages = np.zeros(rows * longest, dtype=np.float32)
    padded_ages[place] = ages
    ids = np.zeros((rows * longest, len(fields)), dtype=np.int64)
    for at, values in enumerate(fields):
        ids[place, at] = values
    return SequenceArrays(
        ids=ids.reshape(rows, longest, len(fields)),
        ages=padded_ages.reshape(rows, longest),
        lengths=lengths,
    )
