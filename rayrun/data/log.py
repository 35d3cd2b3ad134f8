# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""A raw log: fragments of rows that workers read one by one, in bounded memory.

Every row read carries two columns more than the log has:

    __row_id  int64   file_index << 40 | position of the row in its file (from 0); stable and unique
    __bad     string  null, or why the row could not be read as described

A bad row is kept, with null where a value could not be read: whoever reads decides what to do with
it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayrun.config import ConfigError
from rayrun.data.columns import Columns, missing_column

ROW_ID = "__row_id"
BAD = "__bad"
BATCH_ROWS = 65_536
"""The most rows in one table that `read` yields."""


@dataclass(frozen=True)
class Fragment:
    """A part of one file that a worker can read alone."""

    file: str
    """URI of the file, or a name for messages where rows are generated."""
    file_index: int
    first_row: int
    """Position in the file of the fragment's first row."""
    rows: int | None
    """Number of rows where it is known without reading (Parquet, simulation)."""
    bytes: int
    """Size on disk (compressed), 0 where rows are generated."""
    parts: tuple[int, ...] = ()
    """Row groups of a Parquet file, chunks of a simulation."""


class RawLog(ABC):
    """Rows from somewhere. Picklable; a worker opens what it reads."""

    columns: Columns
    schema: pa.Schema
    """All columns, side tables joined, without `__row_id` and `__bad`."""
    name: str
    """For messages."""
    truth: frozenset[str] = frozenset()
    """Columns that hold the answer (true probabilities of a simulation): `require` refuses them."""

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """All parts of the log, in order."""

    @abstractmethod
    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Tables of at most `BATCH_ROWS` rows, in order; `columns` reads only these (None: all).

        Raises:
            ConfigError: the file is damaged or has changed since the log was opened.
        """

    def bounds(self, column: str) -> tuple[Any, Any] | None:
        """Two values of a column between which all others lie, where the log tells without reading.

        They need not occur; None: not known.
        """
        return None

    @abstractmethod
    def content_digest(self) -> str:
        """`sha256:…` of what the log holds, wherever it lies."""

    def require(self, names: Iterable[str], wanted_by: str) -> None:
        """Check that columns are there and may be used.

        Raises:
            ConfigError: one is missing (names the nearest one and lists all), or holds the answer.
        """
        wanted = list(names)
        self.check(wanted, wanted_by)
        for name in wanted:
            if name in self.truth:
                raise ConfigError(
                    f"{wanted_by} must not read {name!r}: it holds the answer (a true value of the "
                    "simulation), which no model may see"
                )

    def check(self, names: Iterable[str], wanted_by: str) -> None:
        """Check that columns are there, for whatever purpose.

        Raises:
            ConfigError: one is missing; names the nearest one and lists all.
        """
        for name in names:
            if name not in self.schema.names:
                raise missing_column(name, self.schema.names, where=self.name, wanted_by=wanted_by)


def add_reason(bad: pa.Array, where: pa.Array, reason: str) -> pa.Array:
    """`bad` with `reason` where it was null and `where` is true."""
    return pc.if_else(pc.and_(pc.is_null(bad), pc.fill_null(where, False)), reason, bad)
