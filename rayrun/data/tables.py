# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""Side tables (users, items): held in memory, joined to each table of the log by key."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrun.config import ConfigError
from rayrun.data import listing
from rayrun.data.columns import missing_column, plain
from rayrun.data.description import FileSource, SideTable
from rayrun.data.listing import File
from rayrun.data.log import BAD, ROW_ID
from rayrun.data.readers import Reader, build
from rayrun.data.readers.values import parse_each


class Lookup:
    """A side table sorted by key: `find` gives the rows of many keys at once.

    Whole numbers are found by binary search in a sorted array, anything else by a dictionary. A
    key of the log is read as the type of the table's keys, so that 7 finds "7" and "7" finds 7.
    """

    def __init__(self, keys: pa.Array, rows: pa.Table, *, where: str, key: str) -> None:
        self.rows = rows
        self.key_type = keys.type
        self.sorted: np.ndarray[Any, Any] | None = None
        self.positions: dict[Any, int] = {}
        if pa.types.is_integer(keys.type):
            numbers = keys.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)
            order = np.argsort(numbers, kind="stable")
            self.sorted = numbers[order]
            self.order = order
            ordered = numbers[order]
            twice = ordered[1:][ordered[1:] == ordered[:-1]]
            double = int(twice[0]) if len(twice) else None
        else:
            double = None
            for at, value in enumerate(keys.to_pylist()):
                if value in self.positions:
                    double = value
                    break
                self.positions[value] = at
        if double is not None:
            raise ConfigError(
                f"{where}: the key {key} = {double!r} stands twice, a side table needs one row "
                "per key; drop the doubles or join by another key"
            )

    def find(self, keys: pa.Array) -> pa.Table:
        """One row per key, null where the key is unknown or null."""
        if self.sorted is None:
            if pa.types.is_string(self.key_type):
                keys = keys.cast(pa.string())
            places = [self.positions.get(k) if k is not None else None for k in keys.to_pylist()]
            return self.rows.take(pa.array(places, pa.int64()))
        if not pa.types.is_integer(keys.type):
            keys = parse_each(keys.to_pylist(), "int")[0]
        numbers = pc.fill_null(keys.cast(pa.int64(), safe=False), 0).to_numpy(zero_copy_only=False)
        absent = pc.is_null(keys).to_numpy(zero_copy_only=False)
        if len(self.sorted) == 0:
            return self.rows.take(pa.nulls(len(keys), pa.int64()))
        at = np.minimum(np.searchsorted(self.sorted, numbers), len(self.sorted) - 1)
        unknown = (self.sorted[at] != numbers) | absent
        return self.rows.take(pa.array(self.order[at], mask=unknown))


class Side:
    """One side table as the log sees it: its files, the columns it adds, and their new names."""

    def __init__(self, spec: SideTable, source: FileSource, files: Sequence[File]) -> None:
        if not files:
            raise ConfigError(
                f"the side table {spec.path!r} is not there; looked below {source.path}. "
                "Check data.source.tables"
            )
        self.spec = spec
        self.files = list(files)
        kind = listing.format_of(files[0].name, spec.format)
        if kind is None:
            raise ConfigError(
                f"{files[0].uri}: the format is not known by its extension; set tables.format"
            )
        described = source.model_copy(
            update={"text": spec.text or source.text, "types": spec.types, "tables": ()}
        )
        self.reader: Reader = build(kind, described)
        self.schema = pa.schema([(f.name, plain(f.type)) for f in self.reader.schema(files[0])])
        where = files[0].uri
        for name in (spec.key, *spec.columns):
            if name not in self.schema.names:
                raise missing_column(
                    name, self.schema.names, where=where, wanted_by=f"the side table {spec.path!r}"
                )
        self.on = spec.on or spec.key
        self.taken = [
            n for n in (spec.columns or tuple(self.schema.names)) if n != spec.key or spec.columns
        ]

    def fields(self) -> list[pa.Field]:
        """The columns added to the log."""
        return [pa.field(self.spec.prefix + n, self.schema.field(n).type) for n in self.taken]

    def load(self, wanted: set[str]) -> Lookup:
        """Read the table into memory: the key, and those added columns that are wanted."""
        taken = [n for n in self.taken if self.spec.prefix + n in wanted]
        names = list(dict.fromkeys([self.spec.key, *taken]))
        parts: list[pa.Table] = []
        for index, file in enumerate(self.files):
            for fragment in self.reader.fragments(index, file):
                for table in self.reader.read(fragment, self.schema, names):
                    why = table.column(BAD).drop_null()
                    if len(why):
                        raise ConfigError(
                            f"{file.uri} has a row that cannot be read ({why[0].as_py()}); a side "
                            "table has no bad rows to spare: mend it, or set tables.types"
                        )
                    parts.append(table.drop_columns([ROW_ID, BAD]))
        whole = pa.concat_tables(parts) if parts else self._empty(names)
        whole = whole.filter(pc.is_valid(whole.column(self.spec.key))).combine_chunks()
        keys = whole.column(self.spec.key)
        rows = whole.select(taken).rename_columns([self.spec.prefix + n for n in taken])
        where = self.files[0].uri
        return Lookup(
            pa.concat_arrays([pa.array([], keys.type), *keys.chunks]),
            rows,
            where=where,
            key=self.spec.key,
        )

    def _empty(self, names: Sequence[str]) -> pa.Table:
        return pa.schema([self.schema.field(n) for n in names]).empty_table()
