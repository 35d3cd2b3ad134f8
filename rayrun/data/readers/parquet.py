# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""Parquet by row groups, streamed by pages: a large row group costs no more than a small one."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrun.data import listing
from rayrun.data.columns import plain
from rayrun.data.description import FileSource
from rayrun.data.listing import File
from rayrun.data.log import BATCH_ROWS, Fragment
from rayrun.data.readers.base import with_row_ids

FRAGMENT_ROWS = 1 << 20
"""Neighbouring row groups are read together up to this many rows."""
REMEDY = "it is no complete Parquet file; write or fetch it again"


class ParquetReader:
    """Reads `.parquet` files; types come from the files."""

    def __init__(self, source: FileSource) -> None:
        self.source = source

    def schema(self, file: File) -> pa.Schema:
        """Types of the file in their simple form."""
        with self._open(file.uri) as parquet:
            schema = parquet.schema_arrow
        return pa.schema(
            [(f.name, f.type if pa.types.is_null(f.type) else plain(f.type)) for f in schema]
        )

    def fragments(self, file_index: int, file: File) -> list[Fragment]:
        """Row groups, neighbours joined up to 1,048,576 rows."""
        result: list[Fragment] = []
        groups: list[int] = []
        first = rows = size = 0
        with self._open(file.uri) as parquet:
            meta = parquet.metadata
            for group in range(meta.num_row_groups):
                here = meta.row_group(group).num_rows
                if groups and rows + here > FRAGMENT_ROWS:
                    result.append(Fragment(file.uri, file_index, first, rows, size, tuple(groups)))
                    first, rows, size, groups = first + rows, 0, 0, []
                rows += here
                size += meta.row_group(group).total_byte_size
                groups.append(group)
        if rows:
            result.append(Fragment(file.uri, file_index, first, rows, size, tuple(groups)))
        return result

    def bounds(self, file: File, column: str) -> tuple[Any, Any] | None:
        """Of a column of numbers or times, from the statistics of all its row groups."""
        with self._open(file.uri) as parquet:
            if not pa.types.is_primitive(parquet.schema_arrow.field(column).type):
                return None  # text: its order is not that of times, and long values are cut
            meta = parquet.metadata
            leaves = [meta.schema.column(at).path for at in range(meta.num_columns)]
            ends: list[tuple[Any, Any]] = []
            for number in range(meta.num_row_groups):
                told = meta.row_group(number).column(leaves.index(column)).statistics
                if told is None or not told.has_min_max:
                    return None
                ends.append((told.min, told.max))
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    def read(
        self, fragment: Fragment, schema: pa.Schema, names: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Batches of at most 65,536 rows."""
        row = fragment.first_row
        with self._open(fragment.file) as parquet:
            batches = parquet.iter_batches(
                batch_size=BATCH_ROWS,
                row_groups=list(fragment.parts),
                columns=list(names),
                use_threads=False,
            )
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        return
                    columns = {n: batch.column(n).cast(schema.field(n).type) for n in names}
                except (*listing.UNREADABLE, KeyError) as error:
                    raise listing.unreadable(fragment.file, error, REMEDY) from None
                yield with_row_ids(
                    dict(columns),
                    schema,
                    file_index=fragment.file_index,
                    first_row=row,
                    bad=None,
                    rows=batch.num_rows,
                )
                row += batch.num_rows

    def _open(self, uri: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                listing.open_random(uri),
                buffer_size=1 << 20,
                pre_buffer=False,
                page_checksum_verification=True,  # where the writer left checksums
            )
        except listing.UNREADABLE as error:
            raise listing.unreadable(uri, error, REMEDY) from None
