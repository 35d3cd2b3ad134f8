# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""Files of a source: which there are, and how to open one, on any file system."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa
from pyarrow import fs as arrow_fs

from rayrun import storage
from rayrun.config import ConfigError

COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
EXTENSIONS = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv", ".txt", ".dat"),
    "jsonl": (".jsonl", ".ndjson"),
}
UNREADABLE = (OSError, pa.ArrowException, EOFError)
"""What a damaged or vanished file raises below us."""


@dataclass(frozen=True)
class File:
    """One file of a source."""

    uri: str
    name: str
    """Relative to the source's path."""
    bytes: int


def format_of(name: str, asked: str) -> str | None:
    """The format of a file by its extension (or as asked for), None when unknown."""
    if asked != "auto":
        return asked
    stem = name.lower()
    for ending in COMPRESSED:
        stem = stem.removesuffix(ending)
    for kind, endings in EXTENSIONS.items():
        if stem.endswith(endings):
            return kind
    return None


def list_files(uri: str) -> list[File]:
    """Every visible file at or below a URI, by name.

    Raises:
        ConfigError: nothing is there.
    """
    system, path = storage.arrow_filesystem(uri)
    with storage.storage_errors(uri):
        info = cast(Any, system.get_file_info(path))
        if info.type == arrow_fs.FileType.File:
            return [File(uri, PurePosixPath(path).name, info.size)]
        if info.type != arrow_fs.FileType.Directory:
            raise ConfigError(f"there is no file or directory {uri}; check data.source.path")
        found = cast("list[Any]", system.get_file_info(arrow_fs.FileSelector(path, recursive=True)))
    files: list[File] = []
    for item in found:
        name = PurePosixPath(item.path).relative_to(PurePosixPath(path)).as_posix()
        if item.type == arrow_fs.FileType.File and not any(
            part.startswith((".", "_")) for part in name.split("/")
        ):
            files.append(File(storage.join(uri, name), name, item.size))
    return sorted(files, key=lambda file: file.name)


def matching(files: Sequence[File], patterns: Sequence[str]) -> list[File]:
    """Files whose name matches a glob pattern; one without a slash is matched at any depth."""
    return [
        file
        for file in files
        if any(
            fnmatch.fnmatchcase(file.name, p)
            or ("/" not in p and fnmatch.fnmatchcase(file.name.rsplit("/", 1)[-1], p))
            for p in patterns
        )
    ]


def open_random(uri: str) -> pa.NativeFile:
    """A file that can be read from any position (Parquet)."""
    with storage.storage_errors(uri):
        system, path = storage.arrow_filesystem(uri)
        return cast(pa.NativeFile, system.open_input_file(path))


def open_stream(uri: str) -> pa.NativeFile:
    """A file read from start to end, decompressed by its extension."""
    with storage.storage_errors(uri):
        system, path = storage.arrow_filesystem(uri)
        return cast(pa.NativeFile, system.open_input_stream(path))


def unreadable(uri: str, error: Exception, remedy: str) -> ConfigError:
    """The one error for a file that is damaged."""
    text = " ".join(str(error).split())[:300]
    return ConfigError(f"{uri} cannot be read ({text}); {remedy}")
