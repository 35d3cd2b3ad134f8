# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""Delimited text, streamed: CSV and its relatives, plain or compressed, in any encoding.

Arrow splits the lines; every value is read as bytes first and typed by us, so that one odd value
makes one bad row and not a failed run. A row with too few or too many values is kept in its place,
all null.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from rayrun.config import ConfigError
from rayrun.data import listing
from rayrun.data.columns import ARROW
from rayrun.data.description import FileSource
from rayrun.data.listing import File
from rayrun.data.log import BATCH_ROWS, Fragment
from rayrun.data.readers import values
from rayrun.data.readers.base import with_row_ids

BLOCK_BYTES = 1 << 20
"""Text parsed at a time; no row may be longer."""
SAMPLE_ROWS = 20_000
UNIT_SEPARATOR = b"\x1f"


class TextReader:
    """Reads delimited text as described by `FileSource.text` and `FileSource.types`."""

    def __init__(self, source: FileSource) -> None:
        self.text = source.text
        self.types = source.types

    def schema(self, file: File) -> pa.Schema:
        """Types as described, else guessed from the first MiB, of it at most 20,000 rows."""
        first = next(iter(self._blocks(file.uri, names=None)), None)
        if first is None:
            raise ConfigError(f"{file.uri} is empty: a header line and at least one row are needed")
        sample = first[0].slice(0, SAMPLE_ROWS)
        missing = frozenset(self.text.missing)
        fields: list[pa.Field] = []
        for name in sample.schema.names:
            type_ = self.types.get(name)
            if type_ is None:
                type_ = values.guess(_decode(sample.column(name))[0], missing)
            fields.append(pa.field(name, ARROW[type_] if type_ else pa.null()))
        return pa.schema(fields)

    def fragments(self, file_index: int, file: File) -> list[Fragment]:
        """The whole file: delimited text cannot be entered in the middle."""
        return [Fragment(file.uri, file_index, 0, None, file.bytes)]

    def bounds(self, file: File, column: str) -> None:
        """Text says nothing of its columns."""

    def read(
        self, fragment: Fragment, schema: pa.Schema, names: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Batches of at most 65,536 rows, bad values null with a reason."""
        row = fragment.first_row
        missing = frozenset(self.text.missing)
        for block, reasons in self._blocks(fragment.file, names=names):
            for start in range(0, block.num_rows, BATCH_ROWS):
                part = block.slice(start, BATCH_ROWS)
                bad: dict[int, str] = {
                    at - start: why
                    for at, why in reasons.items()
                    if start <= at < start + part.num_rows
                }
                columns: dict[str, pa.Array | pa.ChunkedArray] = {}
                for name in names:
                    type_ = _type_name(schema.field(name).type)
                    text, undecoded = _decode(part.column(name))
                    columns[name], unread = values.parse(
                        text, type_, missing=missing, separator=self.text.list_separator
                    )
                    for at, found in undecoded.items():
                        bad.setdefault(at, f"{name}: {found} is not {self.text.encoding} text")
                    for at, found in unread.items():
                        bad.setdefault(at, f"{name}: {found!r} is not of type {type_}")
                reason = None
                if bad:
                    reason = pa.array([bad.get(at) for at in range(part.num_rows)], pa.string())
                yield with_row_ids(
                    columns,
                    schema,
                    file_index=fragment.file_index,
                    first_row=row,
                    bad=reason,
                    rows=part.num_rows,
                )
                row += part.num_rows

    def _blocks(
        self, uri: str, names: Sequence[str] | None
    ) -> Iterator[tuple[pa.Table, dict[int, str]]]:
        """Tables of bytes, rows of a wrong width put back as nulls with their reasons."""
        odd: list[tuple[int, str]] = []  # position among the data rows, reason
        header = self.text.header
        before = 0 if header else 1  # Arrow counts the header line as a row, from 1

        def on_odd(row: Any) -> str:
            shown = " ".join(str(row.text).split())[:80]
            why = f"{row.actual_columns} values instead of {row.expected_columns}: {shown}"
            odd.append((row.number - 1 - before, why))
            return "skip"

        reader = self._open(uri, names, on_odd)
        if reader is None:
            return
        position = 0
        while True:
            try:
                batch = cast("pa.RecordBatch | None", next(reader, None))
            except listing.UNREADABLE as error:
                raise self._damaged(uri, error, position) from None
            table = (
                pa.Table.from_batches([batch]) if batch is not None else reader.schema.empty_table()
            )
            table, reasons = _put_back(table, odd, position, last=batch is None)
            position += table.num_rows
            if table.num_rows:
                yield table, reasons
            if batch is None:
                return

    def _open(self, uri: str, names: Sequence[str] | None, on_odd: Any) -> Any:
        delimiter = self.text.delimiter or ("\t" if ".tsv" in uri.lower() else ",")
        try:
            stream: Any = listing.open_stream(uri)
            utf8 = self.text.encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")
            if len(delimiter) > 1 or not delimiter.isascii():
                stream = pa.PythonFile(self._simplified(stream), mode="r")
                delimiter = UNIT_SEPARATOR.decode()
            all_names = list(self.text.header) or self._header(uri, delimiter)
            if not all_names:
                return None
            return pcsv.open_csv(
                stream,
                read_options=pcsv.ReadOptions(
                    use_threads=False,
                    block_size=BLOCK_BYTES,
                    column_names=list(self.text.header) or None,
                    encoding="utf8" if utf8 else self.text.encoding,
                ),
                parse_options=pcsv.ParseOptions(
                    delimiter=delimiter,
                    quote_char=self.text.quote or False,
                    double_quote=bool(self.text.quote),
                    newlines_in_values=bool(self.text.quote),
                    invalid_row_handler=on_odd,
                ),
                convert_options=pcsv.ConvertOptions(
                    column_types=dict.fromkeys(all_names, pa.binary()),
                    include_columns=list(names) if names is not None else None,
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
        except pa.ArrowKeyError as error:
            raise ConfigError(f"{uri}: {error}; all files of a log need the same header") from None
        except listing.UNREADABLE as error:
            if "Empty CSV" in str(error):
                return None
            raise self._damaged(uri, error, 0) from None

    def _simplified(self, stream: Any) -> "_OneByteDelimiter":
        encoding = self.text.encoding.removesuffix("-sig")  # which writes a mark before any text
        return _OneByteDelimiter(stream, self.text.delimiter.encode(encoding))

    def _header(self, uri: str, delimiter: str) -> list[str]:
        """Column names by the first line, which Arrow's own reader would also take."""
        import csv

        stream: Any = listing.open_stream(uri)
        if delimiter == UNIT_SEPARATOR.decode():
            stream = self._simplified(stream)
        start = b""
        while b"\n" not in start and len(start) < BLOCK_BYTES:
            more = stream.read(1 << 16)
            if not more:
                break
            start += more
        text = start.decode(self.text.encoding, errors="replace").lstrip("\ufeff")
        quoting: dict[str, Any] = (
            {"quotechar": self.text.quote} if self.text.quote else {"quoting": csv.QUOTE_NONE}
        )
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **quoting), [])
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ConfigError(f"{uri}: the column {twice[0]!r} stands twice in the header")
        return names

    def _damaged(self, uri: str, error: Exception, position: int) -> ConfigError:
        if "straddl" in str(error) or "out of sync" in str(error):
            return ConfigError(
                f"{uri}: after data row {position} a row is longer than {BLOCK_BYTES >> 20} MiB "
                "or a quote is not closed; mend the file, or set text.quote to '' if quotes mean "
                "nothing"
            )
        return listing.unreadable(
            uri,
            error,
            "it is no complete delimited text; check data.source.text, or fetch it again",
        )


class _OneByteDelimiter(io.RawIOBase):
    """A stream in which the delimiter is replaced by one ASCII byte, as Arrow needs."""

    def __init__(self, stream: Any, delimiter: bytes) -> None:
        self.stream = stream
        self.delimiter = delimiter
        self.held = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            more: bytes = self.stream.read(size if size > 0 else None)
            data = (self.held + more).replace(self.delimiter, UNIT_SEPARATOR)
            self.held = b""
            if more:  # a delimiter may go on in the next piece
                for length in range(len(self.delimiter) - 1, 0, -1):
                    if data.endswith(self.delimiter[:length]):
                        data, self.held = data[:-length], data[-length:]
                        break
            if data or not more:
                return data


def _type_name(type_: pa.DataType) -> str:
    return next(name for name, arrow in ARROW.items() if arrow == type_)


def _decode(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Bytes as UTF-8 text; positions that are not, with what stands there."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        return pc.cast(array, pa.string()), {}
    except pa.ArrowInvalid:
        pass
    bad: dict[int, str] = {}
    result: list[str | None] = []
    for at, raw in enumerate(cast("list[bytes | None]", array.to_pylist())):
        try:
            result.append(None if raw is None else raw.decode())
        except UnicodeDecodeError:
            result.append(None)
            bad[at] = repr(raw)[1:62]
    return pa.array(result, pa.string()), bad


def _put_back(
    table: pa.Table, odd: list[tuple[int, str]], position: int, *, last: bool
) -> tuple[pa.Table, dict[int, str]]:
    """Insert null rows where odd rows were dropped; `position` counts rows given out so far."""
    if not odd:
        return table, {}
    rows = table.num_rows
    places: list[int] = []
    reasons: dict[int, str] = {}
    for at, why in odd:
        here = at - position
        if here > rows + len(places) or (here == rows + len(places) and not last):
            break
        places.append(here)
        reasons[here] = why
    del odd[: len(places)]
    if not places:
        return table, {}
    total = rows + len(places)
    kept = np.ones(total, dtype=bool)
    kept[places] = False
    take = np.full(total, -1, dtype=np.int64)
    take[kept] = np.arange(rows)
    indices = pa.array(take, mask=~kept)
    return table.take(indices), reasons
