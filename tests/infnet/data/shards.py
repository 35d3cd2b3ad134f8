"""Prepared rows, read back."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "valid", "test")


def shards(directory, split):
    return pa.concat_tables(
        [pq.read_table(p) for p in sorted((Path(directory) / split).glob("*.parquet"))]
    )


def everything(directory):
    """All prepared rows in the order of the log."""
    return pa.concat_tables([shards(directory, s) for s in SPLITS]).sort_by("row_id")
