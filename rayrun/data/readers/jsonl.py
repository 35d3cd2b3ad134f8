# pyarrow comes without types:
# pyright: basic, reportAttributeAccessIssue=false
"""JSON lines, streamed: one object per line; a line that is no object is a bad row."""

import io
import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from rayrun.config import ConfigError
from rayrun.data import listing
from rayrun.data.columns import ARROW
from rayrun.data.description import FileSource
from rayrun.data.listing import File
from rayrun.data.log import Fragment
from rayrun.data.readers import values
from rayrun.data.readers.base import with_row_ids

LINES = 8_192
"""Lines parsed at a time: JSON objects take far more memory than columns."""
SAMPLE_LINES = 10_000
CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
DECODER = json.JSONDecoder(parse_constant=CONSTANTS.__getitem__)
"""NaN is no JSON, but many write it where a number is missing."""


class JsonlReader:
    """Reads `.jsonl`; the columns are the keys in the first 10,000 lines and those in `types`."""

    def __init__(self, source: FileSource) -> None:
        self.types = source.types

    def schema(self, file: File) -> pa.Schema:
        """Types as described, else of the values in the first 10,000 lines."""
        seen: dict[str, set[str]] = {}
        for row, _ in islice(self._lines(file.uri), SAMPLE_LINES):
            for key, value in (row or {}).items():
                kinds = seen.setdefault(key, set())
                if value is not None:
                    kinds.add(_kind(value))
        if not seen:
            raise ConfigError(
                f"{file.uri} is empty: at least one line with a JSON object is needed"
            )
        names = [*seen, *(n for n in self.types if n not in seen)]
        types = {n: self.types.get(n) or (_joint(seen[n]) if seen[n] else None) for n in names}
        return pa.schema([(n, ARROW[type_] if type_ else pa.null()) for n, type_ in types.items()])

    def fragments(self, file_index: int, file: File) -> list[Fragment]:
        """The whole file."""
        return [Fragment(file.uri, file_index, 0, None, file.bytes)]

    def bounds(self, file: File, column: str) -> None:
        """Text says nothing of its columns."""

    def read(
        self, fragment: Fragment, schema: pa.Schema, names: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Batches of 8,192 rows, bad values null with a reason."""
        types = {arrow: name for name, arrow in reversed(ARROW.items())}
        pending: list[dict[str, Any]] = []
        bad: dict[int, str] = {}
        first = fragment.first_row

        def table() -> pa.Table:
            columns: dict[str, pa.Array | pa.ChunkedArray] = {}
            for name in names:
                type_ = types[schema.field(name).type]
                columns[name], unread = values.parse_each([r.get(name) for r in pending], type_)
                for at, found in unread.items():
                    bad.setdefault(at, f"{name}: {found!r} is not of type {type_}")
            reason = pa.array([bad.get(at) for at in range(len(pending))], pa.string())
            return with_row_ids(
                columns,
                schema,
                file_index=fragment.file_index,
                first_row=first,
                bad=reason,
                rows=len(pending),
            )

        for row, why in self._lines(fragment.file):
            if why:
                bad[len(pending)] = why
            pending.append(row or {})
            if len(pending) == LINES:
                yield table()
                first += len(pending)
                pending, bad = [], {}
        if pending:
            yield table()

    def _lines(self, uri: str) -> Iterator[tuple[dict[str, Any] | None, str]]:
        try:
            stream = io.BufferedReader(cast(Any, listing.open_stream(uri)), 1 << 20)
            for number, line in enumerate(stream):
                if not line.strip():
                    continue
                try:
                    row = DECODER.decode(line.decode("utf-8-sig"))
                    if not isinstance(row, dict):
                        raise ValueError(f"a JSON object is needed, found {type(row).__name__}")
                    yield cast("dict[str, Any]", row), ""
                except (ValueError, RecursionError) as error:
                    yield None, f"line {number + 1} is no JSON object: {str(error)[:80]}"
        except listing.UNREADABLE as error:
            raise listing.unreadable(uri, error, "fetch it again") from None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list):
        inside = {_kind(v) for v in cast("list[Any]", value) if v is not None}
        return f"list[{_joint(inside)}]" if inside <= {"int", "float"} and inside else "list[text]"
    return "text"


def _joint(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds and kinds <= {"int", "float"}:
        return "float"
    if kinds and all(k.startswith("list") for k in kinds):
        return "list[float]" if kinds <= {"list[int]", "list[float]"} else "list[text]"
    return "text"
