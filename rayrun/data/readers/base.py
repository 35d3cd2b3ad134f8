# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""What a reader of a file format offers, and the two columns it adds to every row."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rayrun.data.listing import File
from rayrun.data.log import BAD, ROW_ID, Fragment


class Reader(Protocol):
    """One file format. Picklable."""

    def schema(self, file: File) -> pa.Schema:
        """Columns and types by the start of a file; type null where no value is seen there."""
        ...

    def fragments(self, file_index: int, file: File) -> list[Fragment]:
        """The parts of a file that can be read alone."""
        ...

    def bounds(self, file: File, column: str) -> tuple[Any, Any] | None:
        """Two values between which all others of a column lie, if the file says so."""
        ...

    def read(
        self, fragment: Fragment, schema: pa.Schema, names: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Columns `names` typed as in `schema`, then `__row_id` and `__bad`."""
        ...


def with_row_ids(
    columns: dict[str, pa.Array | pa.ChunkedArray],
    schema: pa.Schema,
    *,
    file_index: int,
    first_row: int,
    bad: pa.Array | None,
    rows: int,
) -> pa.Table:
    """A table of the columns with `__row_id` and `__bad` behind them."""
    ids = np.arange(first_row, first_row + rows, dtype=np.int64) + (np.int64(file_index) << 40)
    fields = [schema.field(name) for name in columns]
    arrays: list[pa.Array | pa.ChunkedArray] = list(columns.values())
    return pa.table(
        [*arrays, pa.array(ids), pa.nulls(rows, pa.string()) if bad is None else bad],
        schema=pa.schema([*fields, pa.field(ROW_ID, pa.int64()), pa.field(BAD, pa.string())]),
    )
