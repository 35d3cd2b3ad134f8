"""Raw rows of a file, encoded as the checkpoint's own encoder learnt it: nothing is fitted on the
file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infnet.features.encoder import Encoder
from rayrun import storage
from rayrun.config import ConfigError
from rayrun.data.columns import Columns
from rayrun.data.description import FileSource
from rayrun.data.files import FileLog
from rayrun.data.log import BAD, ROW_ID, Fragment, RawLog
from rayrun.data.source import Source, open_source


def open_file(file: str, source: Source, columns: Columns) -> FileLog:
    """The log of `file`, a file or directory whose rows look like those of `source`.

    Format, column types and side tables are those of `source`; a file of another format by its
    extension is read as that.

    Raises:
        ConfigError: no such file, no rows, or a column that a role needs is missing.
    """
    described = FileSource(path=file, columns=columns)
    if not storage.exists(file):
        raise ConfigError(f"--data {file}: there is no such file; check the path")
    if getattr(source, "type", "") != "simulate":
        log = open_source(source)
        assert isinstance(log, FileLog)
        home = log.source
        tables = tuple(
            table.model_copy(update={"path": _absolute(table.path, home.path)})
            for table in home.tables
        )
        described = home.model_copy(
            update={"path": file, "files": (), "format": "auto", "tables": tables}
        )
    return FileLog(described, name=file)


def _absolute(table: str, home: str) -> str:
    if "://" in table or table.startswith("/"):
        return table
    place = storage.local_path(home)
    folder = str(place.absolute()) if place is not None else home
    return storage.join(folder, table)


KEY = "key."
"""What the name of a kept raw column begins with: a log may call its own columns `user` or `time`,
which are also names of encoded ones."""


@dataclass(frozen=True)
class RawReader:
    """Fragments of a raw log as encoded rows and bad rows. Picklable."""

    log: RawLog
    encoder: Encoder
    labels: bool
    """False for prediction: label columns are not read and may be missing."""
    keys: tuple[str, ...] = ()
    """Raw columns kept beside the encoded ones, as `KEY` + name."""
    only: np.ndarray | None = None
    """Ascending row ids; other rows are left out, and fragments without one of them not read."""

    def columns(self) -> list[str]:
        """Raw columns that are read."""
        needed = self.encoder.features.columns(labels=self.labels)
        return list(dict.fromkeys([*needed, *self.keys]))

    def check(self) -> None:
        """Check that the file has the columns.

        Raises:
            ConfigError: one is missing.
        """
        what = "features, labels and roles" if self.labels else "features and roles"
        self.log.check(self.columns(), f"the checkpoint ({what})")

    def read(self, index: int) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Encoded good rows with the keys, and bad rows as they were read, piece by piece."""
        features = self.encoder.features
        fragment = self.log.fragments()[index]
        if not self._wanted(fragment):
            return
        for rows in self.log.read(fragment, self.columns()):
            if self.only is not None:
                rows = rows.filter(pa.array(self._among(rows[ROW_ID].to_numpy(), self.only)))
            reason = features.check(rows, labels=self.labels)
            rows = rows.set_column(rows.column_names.index(BAD), BAD, reason)
            good = rows.filter(rows[BAD].is_null())
            yield self._encoded(good), rows.filter(rows[BAD].is_valid())

    def _encoded(self, rows: pa.Table) -> pa.Table:
        encoded = self.encoder.encode(self.encoder.derive(rows), labels=self.labels)
        for key in self.keys:
            encoded = encoded.append_column(KEY + key, rows[key])
        return encoded

    def _wanted(self, fragment: Fragment) -> bool:
        if self.only is None:
            return True
        first = fragment.file_index << 40 | fragment.first_row
        end = (fragment.file_index + 1) << 40 if fragment.rows is None else first + fragment.rows
        low, high = np.searchsorted(self.only, [first, end])
        return bool(low < high)

    @staticmethod
    def _among(ids: np.ndarray, only: np.ndarray) -> np.ndarray:
        at = np.searchsorted(only, ids)
        return only[np.minimum(at, len(only) - 1)] == ids
