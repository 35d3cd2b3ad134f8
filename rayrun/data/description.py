"""How files of a log are described in YAML: format, columns, types, side tables."""

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, field_validator, model_validator

from rayrun.config import Config, Place
from rayrun.data.columns import Columns, ColumnType

Format = Literal["auto", "parquet", "csv", "jsonl"]


def _as_tuple(patterns: object) -> object:
    if isinstance(patterns, str):
        return (patterns,)
    return tuple(cast("list[object]", patterns)) if isinstance(patterns, list) else patterns


Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""Glob patterns; one may be written without brackets."""


class TextFormat(Config):
    """How delimited text is written; the defaults are those of RFC 4180."""

    delimiter: str = ""
    """One or more characters. Empty: a tab for `.tsv`, else a comma."""
    encoding: str = "utf-8"
    header: tuple[str, ...] = ()
    """Column names of files without a header line. Empty: the first line names the columns."""
    quote: str = '"'
    """The quote character; empty switches quoting off."""
    list_separator: str = ","
    """Between the elements of a value of a list type; surrounding brackets are dropped."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "\\N")
    """What stands for no value in a column of numbers; in a text column only the empty value."""

    @field_validator("quote")
    @classmethod
    def _one_character(cls, quote: str) -> str:
        if len(quote) > 1:
            raise ValueError("quote must be one character, or empty for none")
        return quote

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        import codecs

        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError("encoding must be one that Python knows, such as utf-8") from None
        return encoding


class SideTable(Config):
    """A table of users, items or anything else that a column of the log points to.

    It is held in memory by every worker that reads, so it should have far fewer rows than the log.
    """

    path: Annotated[str, Place]
    """Relative to the source's path (a glob pattern may name several files), or a full URI."""
    key: str
    """Column of the side table; no value may stand twice."""
    on: str = ""
    """Column of the log that holds the key; empty: the same name."""
    columns: tuple[str, ...] = ()
    """Columns to take; empty: all but the key."""
    prefix: str = ""
    """Put before each taken column's name."""
    format: Format = "auto"
    text: TextFormat | None = None
    """How its text is written; absent: as the log's."""
    types: dict[str, ColumnType] = {}


class FileSource(Config):
    """A log in files: where, how written, what the columns mean."""

    path: Annotated[str, Place]
    """A file, or a directory of files; a path or a URI such as s3://bucket/folder."""
    format: Format = "auto"
    """`auto` goes by the extension: .parquet .pq · .csv .tsv .txt .dat (also .gz, .bz2, .zst) ·
    .jsonl .ndjson."""
    files: Patterns = ()
    """Glob patterns within a directory; one without a slash is looked for at any depth. Empty:
    every file of a known format that is no side table."""
    columns: Columns = Columns()
    tables: tuple[SideTable, ...] = ()
    types: dict[str, ColumnType] = {}
    """Types of columns of text formats; those not named are guessed from the start of each file."""
    text: TextFormat = TextFormat()

    @model_validator(mode="after")
    def _somewhere(self) -> "FileSource":
        if not self.path:
            raise ValueError("path must name a file or a directory")
        return self
