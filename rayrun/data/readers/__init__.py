"""Readers of file formats: each yields tables of bounded size with `__row_id` and `__bad`."""

from typing import Protocol

from rayrun.data.description import FileSource
from rayrun.data.readers.base import Reader
from rayrun.data.readers.jsonl import JsonlReader
from rayrun.data.readers.parquet import ParquetReader
from rayrun.data.readers.text import TextReader

__all__ = ["Reader", "build"]


class _Build(Protocol):
    def __call__(self, source: FileSource) -> Reader: ...


READERS: dict[str, _Build] = {
    "parquet": ParquetReader,
    "csv": TextReader,
    "jsonl": JsonlReader,
}


def build(kind: str, source: FileSource) -> Reader:
    """The reader of a format, for files as described."""
    return READERS[kind](source)
