"""What runs on Ray's workers: thin shells around rows, scan and encoder, one block at a time."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from infnet.data import passes, rows, sample, scan
from infnet.data.passes import KEY, ROW_ID, SPLIT, TRAIN, Pass
from infnet.data.rows import Findings, RowReader
from infnet.data.shards import ROW_GROUP_ROWS, SPLITS
from infnet.features.hashing import mix, row_keys
from infnet.features.summaries import moments
from rayrun.config import Json

ORDER = "__order"
"""Column that training rows are shuffled by."""

CELLS = 1 << 19
"""History events in memory at a time while rows are encoded."""


def read(block: pa.Table, reader: Any) -> Iterator[pa.Table]:
    """Checked rows of the fragments that a block names."""
    opened: RowReader = ray.get(reader)
    for index in block["fragment"].to_pylist():
        yield from opened.read(index)


def find(reader: RowReader, block: pa.Table) -> Findings:
    """What a block of checked rows tells."""
    return rows.find(reader, block)


def count(reader: RowReader, block: pa.Table, parts: int) -> Any:
    """Value counts of a block, in `parts` (one result each)."""
    counts = rows.count_values(reader.features, block, parts)
    return counts[0] if parts == 1 else counts


def merge_counts(reader: RowReader, refs: list[Any]) -> dict[str, pa.Table]:
    """The same part of all blocks as one, one block at a time; what cannot be known is cut off."""
    features = reader.features
    merged: dict[str, pa.Table] = ray.get(refs[0])
    for ref in refs[1:]:
        merged = features.merge_counts([merged, ray.get(ref)])
    demands = features.demands().vocabularies
    return {name: rows.most_frequent(table, demands[name]) for name, table in merged.items()}


def quarantine(reader: RowReader, index: int) -> pa.Table:
    """Bad rows of a fragment."""
    return reader.quarantine(index)


def sample_users(reader: RowReader, block: pa.Table) -> pa.Table:
    """Some users of a block."""
    return sample.find(reader.features, rows.good(block))


def sample_rows(reader: RowReader, groups: list[list[int]], block: pa.Table) -> list[pa.Table]:
    """Rows of a block that may enter the request of each group of users."""
    good = rows.good(block)
    return [sample.collect(reader.features, keys, good) for keys in groups]


def good(block: pa.Table) -> pa.Table:
    """The rows that are not bad."""
    return rows.good(block)


def with_key(block: pa.Table, key: tuple[str, ...]) -> pa.Table:
    """The rows with the key of the next pass."""
    keys = pa.array(row_keys(block, key))
    if KEY in block.column_names:
        block = block.drop_columns([KEY])
    return block.append_column(KEY, keys)


def summarise(step: Pass, block: pa.Table) -> tuple[passes.Summary, int, pa.Table]:
    """Boundary summary, id of the first row (it names the block), inner look-up rows."""
    summary, inner = scan.summarise(step, block)
    return summary, block[ROW_ID][0].as_py(), inner


def emit(block: pa.Table, step: Pass, carries: dict[int, Any]) -> Iterator[pa.Table]:
    """Rows with derived columns; `carries` is by the id of the block's first row."""
    carry: Any = ray.get(carries[block[ROW_ID][0].as_py()])
    yield from scan.emit(step, block, carry, CELLS)


def encode(block: pa.Table, encoder: Any) -> pa.Table:
    """Columns of a shard, with what the rows are sorted by."""
    fitted: Any = ray.get(encoder)
    encoded = fitted.encode(block)
    ids = encoded["row_id"].to_numpy()
    hashed = (mix(ids.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)
    split = block[SPLIT]
    order = np.where(split.to_numpy() == TRAIN, hashed, ids)
    return encoded.append_column(SPLIT, split).append_column(ORDER, pa.array(order))


def measure(block: pa.Table, statistics: tuple[str, ...]) -> tuple[list[int], dict[str, Json]]:
    """Rows of each split in a block, and moments of some dense slots over its training rows."""
    split = block[SPLIT].to_numpy()
    train = split == TRAIN
    found = {
        name: moments(block[f"d.{name}"].to_numpy()[train].astype(np.float64))
        for name in statistics
    }
    return np.bincount(split, minlength=len(SPLITS)).tolist(), found


def shard(pieces: list[tuple[Any, int, int]]) -> bytes:
    """A Parquet file of some slices of blocks."""
    parts = []
    for ref, first, last in pieces:
        block: Any = ray.get(ref)
        parts.append(block.slice(first, last - first))
    return parquet(pa.concat_tables(parts).drop_columns([SPLIT, ORDER]))


def parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file with page checksums; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(None),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        write_page_checksum=True,
    )
    return sink.getvalue()
