"""Columns of a shard → `Batch`. Vectorised: no loop over rows."""

import numpy as np
import pyarrow as pa
import torch

from infnet.batch import Batch, SequenceBatch
from infnet.features.arrays import shard_column, to_arrays
from infnet.features.columns import as_numpy
from infnet.schema import Schema


def to_batch(table: pa.Table, schema: Schema) -> Batch:
    """The rows of a table with the columns of a shard, in the column order of the schema.

    Sequences are padded to the longest of these rows (at least 1).

    Raises:
        ConfigError: a column is missing: the table was encoded for another schema.
    """
    arrays = to_arrays(table, schema)
    labels = np.empty((table.num_rows, len(schema.tasks)), dtype=np.float32)
    for at, task in enumerate(schema.tasks):
        labels[:, at] = as_numpy(shard_column(table, f"y.{task}").cast(pa.float32()))
    observed = ~np.isnan(labels)
    return Batch(
        ids=torch.from_numpy(arrays.ids),
        dense=torch.from_numpy(arrays.dense),
        sequences={
            name: SequenceBatch(
                ids=torch.from_numpy(found.ids),
                ages=torch.from_numpy(found.ages),
                lengths=torch.from_numpy(found.lengths),
            )
            for name, found in arrays.sequences.items()
        },
        labels=torch.from_numpy(np.where(observed, labels, np.float32(0))),
        observed=torch.from_numpy(observed),
        weight=torch.from_numpy(_copy(table, "weight", np.float32)),
        user=torch.from_numpy(_copy(table, "user", np.int64)),
        row_id=torch.from_numpy(_copy(table, "row_id", np.int64)),
    )


def _copy(table: pa.Table, name: str, kind: type) -> np.ndarray:
    return np.array(as_numpy(shard_column(table, name)), dtype=kind)
