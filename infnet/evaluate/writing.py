"""Files of scored rows, and the quarantine of rows that could not be scored."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infnet.evaluate.predictions import Rows
from rayrun.config import ConfigError
from rayrun.data.log import BAD

ROWS_PER_FILE = 1_000_000
"""Rows of one predictions file."""


class PredictionWriter:
    """Writes `predictions/part-*.parquet` of one model, some rows at a time."""

    def __init__(self, directory: Path, tasks: Sequence[str] = ()) -> None:
        self.directory = directory / "predictions"
        self.directory.mkdir(parents=True)
        self.tasks = tasks
        self._writer: pq.ParquetWriter | None = None
        self._files = self._rows = 0

    def write(self, rows: Rows) -> None:
        """Append rows; a file is closed after `ROWS_PER_FILE`."""
        self.write_table(rows.to_table(self.tasks))

    def write_table(self, table: pa.Table) -> None:
        """Append rows of one schema."""
        if self._writer is None:
            path = self.directory / f"part-{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            self._files, self._rows = self._files + 1, 0
        self._writer.write_table(table)
        self._rows += table.num_rows
        if self._rows >= ROWS_PER_FILE:
            self.close()

    def close(self) -> None:
        """Finish the file that is open."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class Quarantine:
    """Bad rows of a file: written with their reasons, counted, refused above a share."""

    def __init__(self, staging: Path) -> None:
        self.directory = staging / "quarantine"
        self.rows = 0
        self.reasons: dict[str, int] = {}
        self._files = 0

    def write(self, bad: pa.Table) -> None:
        """Keep some bad rows."""
        self.directory.mkdir(exist_ok=True)
        pq.write_table(bad, self.directory / f"part-{self._files:05d}.parquet")
        self._files += 1
        self.rows += bad.num_rows
        for reason in bad[BAD].to_pylist():
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def close(self, good: int, max_bad_share: float) -> None:
        """Refuse a file with too many bad rows, or with none at all.

        Raises:
            ConfigError: the share of bad rows is above `max_bad_share`, or there is no row.
        """
        total = good + self.rows
        if total == 0:
            raise ConfigError("the evaluated data has no rows; check --data or the split")
        if self.rows > max_bad_share * total:
            worst = max(self.reasons, key=lambda reason: self.reasons[reason])
            raise ConfigError(
                f"{self.rows} of {total} rows are bad, above data.max_bad_share ({max_bad_share}); "
                f"the most frequent reason ({self.reasons[worst]} rows): {worst}; mend the file, "
                "or raise data.max_bad_share"
            )
