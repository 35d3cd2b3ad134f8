# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""`FileLog`: a log in files, side tables joined, roles checked."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayrun import storage
from rayrun.config import ConfigError, digest_of
from rayrun.data import listing
from rayrun.data.columns import missing_column, plain, to_milliseconds
from rayrun.data.description import FileSource
from rayrun.data.listing import File
from rayrun.data.log import BAD, ROW_ID, Fragment, RawLog, add_reason
from rayrun.data.readers import Reader, build
from rayrun.data.tables import Lookup, Side


class FileLog(RawLog):
    """Files as described by a `FileSource`. Opening reads schemas and footers, never rows."""

    def __init__(self, source: FileSource, *, name: str) -> None:
        self.source = source
        self.name = name
        self.columns = source.columns
        self.sides: list[Side] = []
        self.files = self._files()
        kind = self._kind()
        self.reader: Reader = build(kind, source)
        self.own = self._own_schema()
        self.schema = self._joined()
        self._fragments = self._all_fragments()
        self._lookups: dict[tuple[str, ...], list[tuple[Side, Lookup]]] = {}
        for role, column in self.columns.names().items():
            self.require([column], f"data.source.columns.{role}")

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_lookups"] = {}  # side tables are read again where the log is read
        return state

    def fragments(self) -> list[Fragment]:
        """Parts of all files, empty files left out."""
        return self._fragments

    def read(self, fragment: Fragment, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Rows of a part with their side tables, which are read once per set of columns."""
        wanted = list(self.schema.names) if columns is None else list(dict.fromkeys(columns))
        self.check(wanted, "read")
        roles = [c for r, c in self.columns.names().items() if r in ("user", "item", "time")]
        lookups = self._lookups_for({*wanted, *roles})
        keys = [side.on for side, _ in lookups]
        own = [n for n in self.own.names if n in {*wanted, *roles, *keys}]
        for table in self.reader.read(fragment, self.own, own):
            joined = table
            for side, lookup in lookups:
                found = lookup.find(table.column(side.on).combine_chunks())
                for field in found.schema:
                    joined = joined.append_column(field, found.column(field.name))
            bad = self._check_roles(joined)
            yield joined.select([*wanted, ROW_ID]).append_column(pa.field(BAD, pa.string()), bad)

    def bounds(self, column: str) -> tuple[Any, Any] | None:
        """From what the files say of their columns; not of one that a side table adds."""
        if column not in self.own.names:
            return None
        found = [self.reader.bounds(file, column) for file in self.files]
        known = [ends for ends in found if ends is not None]
        if not known or len(known) < len(found):
            return None
        return min(low for low, _ in known), max(high for _, high in known)

    def content_digest(self) -> str:
        """Of names and bytes of the files read, side tables included, each in its role."""
        used = [self.files, *(side.files for side in self.sides)]
        return digest_of([[[f.name, storage.content_digest(f.uri)] for f in part] for part in used])

    def _files(self) -> list[File]:
        everything = listing.list_files(self.source.path)
        in_tables: set[str] = set()
        for spec in self.source.tables:
            if "://" in spec.path or spec.path.startswith("/"):
                found = listing.list_files(spec.path)
            else:
                found = listing.matching(everything, [spec.path])
            self.sides.append(Side(spec, self.source, found))
            in_tables |= {file.uri for file in found}
        if self.source.files:
            chosen = listing.matching(everything, self.source.files)
            sought = f"files that match {', '.join(self.source.files)}"
        else:
            chosen = [f for f in everything if listing.format_of(f.name, self.source.format)]
            sought = "files of a known format (.parquet, .csv, .tsv, .jsonl, …)"
            if len(everything) == 1 and everything[0].uri == self.source.path and not chosen:
                raise ConfigError(
                    f"{self.source.path}: the format is not known by its extension; "
                    "set data.source.format to parquet, csv or jsonl"
                )
        chosen = [f for f in chosen if f.uri not in in_tables]
        if not chosen:
            there = ", ".join(f.name for f in everything[:12]) or "nothing"
            raise ConfigError(
                f"{self.source.path} holds no {sought}; found there: {there}. "
                "Check data.source.files"
            )
        return chosen

    def _kind(self) -> str:
        kinds = {
            listing.format_of(f.name, self.source.format) or "an unknown format": f.name
            for f in self.files
        }
        if len(kinds) != 1:
            shown = ", ".join(f"{name} ({kind})" for kind, name in kinds.items())
            raise ConfigError(
                f"{self.source.path} holds files of several formats: {shown}; name those of the "
                "log with data.source.files, or set data.source.format"
            )
        return next(iter(kinds))

    def _own_schema(self) -> pa.Schema:
        schemas = [(file, self.reader.schema(file)) for file in self.files if file.bytes]
        if not schemas:
            raise ConfigError(f"{self.name} is empty: {self.files[0].uri} has no bytes")
        first, schema = schemas[0]
        if len(set(schema.names)) != len(schema.names):
            twice = next(n for n in schema.names if schema.names.count(n) > 1)
            raise ConfigError(f"{first.uri}: the column {twice!r} stands twice")
        for file, other in schemas[1:]:
            for name in sorted(set(schema.names) ^ set(other.names)):
                lacking = file if name in schema.names else first
                known = (other if lacking is file else schema).names
                raise missing_column(
                    name,
                    known,
                    where=lacking.uri,
                    wanted_by="the log (another of its files has it)",
                )
            fields: list[pa.Field] = []
            for name in schema.names:
                pair = [pa.schema([s.field(name)]) for s in (schema, other)]
                try:
                    fields.append(pa.unify_schemas(pair, promote_options="permissive").field(0))
                except pa.ArrowException:
                    raise ConfigError(
                        f"{file.uri}: the column {name!r} is {other.field(name).type}, in "
                        f"{first.uri} it is {schema.field(name).type}; all files of a log need "
                        "the same columns: name the type under data.source.types (text formats), "
                        "or write the files alike"
                    ) from None
            schema = pa.schema(fields)
        return pa.schema([(f.name, plain(f.type)) for f in schema])

    def _joined(self) -> pa.Schema:
        fields = list(self.own)
        for side in self.sides:
            if side.on not in self.own.names:
                raise missing_column(
                    side.on,
                    self.own.names,
                    where=self.files[0].uri,
                    wanted_by=f"the side table {side.spec.path!r}",
                )
            for field in side.fields():
                if field.name in {f.name for f in fields}:
                    raise ConfigError(
                        f"the column {field.name!r} of the side table {side.spec.path!r} is "
                        "already in the log; set tables.prefix, or name what to take with "
                        "tables.columns"
                    )
                fields.append(field)
        for reserved in (ROW_ID, BAD):
            if reserved in {f.name for f in fields}:
                raise ConfigError(f"{self.name}: the column name {reserved} is reserved; rename it")
        return pa.schema(fields)

    def _all_fragments(self) -> list[Fragment]:
        found = [
            part
            for index, file in enumerate(self.files)
            if file.bytes
            for part in self.reader.fragments(index, file)
        ]
        if not found or all(part.rows == 0 for part in found):
            raise ConfigError(
                f"{self.name} is empty: none of its {len(self.files)} files has a row"
            )
        return found

    def _lookups_for(self, wanted: set[str]) -> list[tuple[Side, Lookup]]:
        key = tuple(sorted(wanted))
        if key not in self._lookups:
            needed = [s for s in self.sides if {f.name for f in s.fields()} & wanted]
            self._lookups = {key: [(side, side.load(wanted)) for side in needed]}
        return self._lookups[key]

    def _check_roles(self, table: pa.Table) -> pa.Array:
        """Where the log has these roles, a row without a user, item or readable time is bad."""
        bad = table.column(BAD).combine_chunks()
        for role in ("user", "item"):
            column = self.columns.names().get(role)
            if column:
                absent = pc.is_null(table.column(column).combine_chunks())
                bad = add_reason(bad, absent, f"{column}: the row has no {role}")
        time = self.columns.time
        if time:
            values = table.column(time.column)
            absent = pc.is_null(to_milliseconds(values, time.unit))
            bad = add_reason(bad, absent, f"{time.column}: no time in unit {time.unit}")
        return bad
