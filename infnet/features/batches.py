"""Columns of a shard → `Batch`. Vectorised: no loop over rows."""

import numpy as np
import pyarrow as pa
import torch

from infnet.batch import Batch, SequenceBatch
from infnet.features.columns import as_numpy, pc, plain, ranges
from infnet.schema import Schema, SequenceSlot
from rayrun.config import ConfigError


def to_batch(table: pa.Table, schema: Schema) -> Batch:
    """The rows of a table with the columns of a shard, in the column order of the schema.

    Sequences are padded to the longest of these rows (at least 1).

    Raises:
        ConfigError: a column is missing: the table was encoded for another schema.
    """
    rows = table.num_rows
    ids = np.empty((rows, len(schema.fields)), dtype=np.int64)
    for at, slot in enumerate(schema.fields):
        ids[:, at] = as_numpy(_column(table, f"c.{slot.name}"))
    dense = np.empty((rows, schema.dense_width), dtype=np.float32)
    for slot in schema.dense:
        start = schema.dense_starts[slot.name]
        dense[:, start : start + slot.width] = _block(table, f"d.{slot.name}", slot.width)
    labels = np.empty((rows, len(schema.tasks)), dtype=np.float32)
    for at, task in enumerate(schema.tasks):
        labels[:, at] = as_numpy(_column(table, f"y.{task}").cast(pa.float32()))
    observed = ~np.isnan(labels)
    return Batch(
        ids=torch.from_numpy(ids),
        dense=torch.from_numpy(dense),
        sequences={slot.name: _sequence(table, slot) for slot in schema.sequences},
        labels=torch.from_numpy(np.where(observed, labels, np.float32(0))),
        observed=torch.from_numpy(observed),
        weight=torch.from_numpy(_copy(table, "weight", np.float32)),
        user=torch.from_numpy(_copy(table, "user", np.int64)),
        row_id=torch.from_numpy(_copy(table, "row_id", np.int64)),
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise ConfigError(
            f"the shard has no column {name!r}, which the schema needs: it was encoded for another "
            "schema; run `infnet prepare` with this config"
        )
    return plain(table.column(name))


def _copy(table: pa.Table, name: str, kind: type) -> np.ndarray:
    return np.array(as_numpy(_column(table, name)), dtype=kind)


def _block(table: pa.Table, name: str, width: int) -> np.ndarray:
    values = _column(table, name)
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


def _sequence(table: pa.Table, slot: SequenceSlot) -> SequenceBatch:
    ages = _column(table, f"s.{slot.name}.ages")
    lengths = as_numpy(pc.list_value_length(ages)).astype(np.int64)
    rows, longest = len(lengths), max(1, int(lengths.max(initial=0)))
    # flat place of every event in the padded [rows, longest] rectangle
    place = ranges(np.arange(rows) * longest, lengths)
    padded_ages = np.zeros(rows * longest, dtype=np.float32)
    padded_ages[place] = as_numpy(ages.flatten())
    ids = np.zeros((rows * longest, len(slot.fields)), dtype=np.int64)
    for at, field in enumerate(slot.fields):
        ids[place, at] = as_numpy(_column(table, f"s.{slot.name}.ids.{field}").flatten())
    return SequenceBatch(
        ids=torch.from_numpy(ids.reshape(rows, longest, len(slot.fields))),
        ages=torch.from_numpy(padded_ages.reshape(rows, longest)),
        lengths=torch.from_numpy(lengths),
    )
