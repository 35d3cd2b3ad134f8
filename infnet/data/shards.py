"""The Parquet shards of a prepared dataset: which there are, and their rows by position."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infnet.schema import Schema
from rayrun import manifest, storage
from rayrun.config import ConfigError

KIND = "infnet.dataset"
FORMAT_VERSION = 1

ROW_GROUP_ROWS = 8_192
"""Rows of one row group: the unit of reading, and so of the reader's memory."""

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    name: str
    """Path inside the dataset directory."""
    rows: int


@dataclass(frozen=True)
class Shards:
    """All shards of one split, in the order they were written."""

    uri: str
    files: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return sum(shard.rows for shard in self.files)

    def read(self, shard: Shard, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Rows `start` (inclusive) to `stop` (exclusive) of a shard, at most one row group at a
        time.

        Page checksums are verified.

        Raises:
            ConfigError: the file is missing, truncated or corrupt, or has not the rows of the
            manifest.
        """
        stop = shard.rows if stop is None else stop
        filesystem, path = storage.arrow_filesystem(storage.join(self.uri, shard.name))
        try:
            with filesystem.open_input_file(path) as file:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                if parquet.metadata.num_rows != shard.rows:
                    raise self._damaged(
                        shard, f"{parquet.metadata.num_rows} rows, {shard.rows} expected"
                    )
                first = 0
                for group in range(parquet.num_row_groups):
                    last = first + parquet.metadata.row_group(group).num_rows
                    if last > start and first < stop:
                        begin, end = max(start, first) - first, min(stop, last) - first
                        yield parquet.read_row_group(group).slice(begin, end - begin)
                    first = last
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(
                shard, str(error).splitlines()[0] if str(error) else repr(error)
            ) from error

    def ranges(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        """Rows `start` to `stop` of the whole split as (shard, first row, last row) pieces."""
        first = 0
        for shard in self.files:
            last = first + shard.rows
            if last > start and first < stop:
                yield shard, max(start, first) - first, min(stop, last) - first
            first = last

    def reordered(self, order: list[int]) -> "Shards":
        """The same shards in another order."""
        return Shards(self.uri, tuple(self.files[i] for i in order))

    def _damaged(self, shard: Shard, what: str) -> ConfigError:
        return ConfigError(
            f"the shard {storage.join(self.uri, shard.name)} is missing, truncated or corrupt "
            f"({what}); run `infnet prepare` again"
        )


def open_shards(uri: str, split: SplitName, schema: Schema, *, verify: bool = True) -> Shards:
    """The shards of a split, after checking that the directory is whole and made for `schema`.

    With `verify`, sizes and digests of all files are compared with the manifest, once per process.

    Raises:
        ConfigError: no prepared dataset, damaged, of a newer format, or fitted with another
        encoder.
    """
    found = manifest.read(uri, kind=KIND, format_version=FORMAT_VERSION)
    if found.info["encoder_digest"] != schema.encoder_digest:
        raise ConfigError(
            f"{uri} was prepared with encoder {found.info['encoder_digest']}, the schema of the "
            f"model belongs to encoder {schema.encoder_digest}: it is the schema of another "
            "dataset; train on this dataset, or point inputs.data at the one the model was "
            "trained on"
        )
    if verify:
        _verified(uri, found.created)
    rows: dict[str, int] = found.info["shards"]
    return Shards(
        uri, tuple(Shard(name, rows[name]) for name in sorted(rows) if name.startswith(f"{split}/"))
    )


@lru_cache(maxsize=8)
def _verified(uri: str, created: str) -> None:
    manifest.verify(uri)
