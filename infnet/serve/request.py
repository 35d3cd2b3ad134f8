"""A request body, checked and read: bytes in, typed columns out, or one readable refusal.

    {"user": {…}, "context": {…}, "histories": {behaviour: [events]}, "candidates": [rows]}

Every value stands under the name of its column in the log, in the log's type; null means unknown.
A candidate's row is `user`, `context` and the candidate, the later winning. What the log would
have quarantined is refused here, so that no row is scored that training could not have seen.

The work is by block of columns: 512 candidates of 100 fields are checked in less time than their
JSON takes to decode.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from infnet.features.base import Feature, Problem
from infnet.features.blocks import Block, Blocks
from infnet.features.columns import as_numpy
from infnet.features.compiled import Events
from infnet.features.encoder import Encoder
from infnet.features.scaled import ScaledNumber
from infnet.features.window import WindowFeature
from infnet.serve.json_types import BadValueError, JsonType, json_type
from rayrun.config import Json
from rayrun.data.columns import nearest, to_milliseconds
from rayrun.ray.body import RequestError, cut, decode, refuse_twice, shown

PARTS = ("user", "context", "histories", "candidates")

_UNITS = {
    "s": "seconds since 1970-01-01 UTC",
    "ms": "milliseconds since 1970-01-01 UTC",
    "us": "microseconds since 1970-01-01 UTC",
    "iso": "an ISO 8601 date or date-time, UTC unless it says otherwise",
}


@dataclass(frozen=True)
class Request:
    """A request that can be scored, in the types of the log: what `RequestEncoder.encode` takes."""

    shared: Blocks
    """One row: values of `user` and `context`, the same for every candidate."""
    candidates: Blocks
    """The columns that the candidates carry."""
    histories: Mapping[str, Events]
    """Events by behaviour, oldest first."""

    def __len__(self) -> int:
        """Number of candidates."""
        return self.candidates.rows


class RequestReader:
    """Reads request bodies for one encoder. Holds nothing of a request."""

    def __init__(self, encoder: Encoder, *, max_candidates: int) -> None:
        """The encoder says which columns there are, and of which types.

        Raises:
            ConfigError: a column's type has no form in JSON.
        """
        features = encoder.features
        roles, demands = features.roles, encoder.demands()
        self.max_candidates = max_candidates
        self.time = roles.time
        self.columns = _types(encoder, features.columns(labels=False))
        """Type of every column of a candidate's row."""
        self.behaviours = {
            behaviour: _types(encoder, [*demand.columns, roles.time.column if roles.time else ""])
            for behaviour, demand in demands.histories.items()
        }
        """Types of the columns of an event, by behaviour."""
        self._kept = {name: demand.columns for name, demand in demands.histories.items()}
        self.never_null = tuple(n for n in (roles.user, roles.time and roles.time.column) if n)
        """Columns that every row must have a value in."""
        self._refusing = {
            name: feature
            for name, feature in features.features.items()
            if _may_refuse(name, feature, features.schema)
        }

    def read(self, body: bytes) -> Request:
        """One body.

        Raises:
            RequestError: 422, with the path of the first field that is wrong.
        """
        user, context, histories, candidates = self._parts(body)
        for part, row in (("user", user), ("context", context)):
            _refuse_unknown(f"{part}.", row, self.columns, "the columns are")
        for name in user.keys() & context.keys():  # what context wins over is checked as well
            _array([user[name]], self.columns[name], lambda _, n=name: f"user.{n}")
        places = {n: f"user.{n}" for n in user} | {n: f"context.{n}" for n in context}
        both = {**user, **context}
        one = {name: (value,) for name, value in both.items()}
        shared = _blocks(one, self.columns, 1, lambda _, name: places[name])
        rows = self._rows(candidates, "candidates", self.columns, both)
        shared = shared.without(rows)
        self._refuse_null(rows, shared, places)
        self._refuse_problems(rows, shared, places)
        events = {
            behaviour: self._events(behaviour, histories.get(behaviour, []))
            for behaviour in self.behaviours
        }
        return Request(shared, rows, events)

    # -- structure ----------------------------------------------------------------------------

    def _parts(self, body: bytes) -> tuple[Json, Json, dict[str, list[Json]], list[Json]]:
        parts = decode(body)
        if type(parts) is not dict:
            raise RequestError(
                422, "", f"the body must be an object with {', '.join(PARTS)}, found {shown(parts)}"
            )
        _refuse_unknown("", parts, PARTS, "a request holds")
        user, context, histories = (_object(part, parts.get(part, {})) for part in PARTS[:3])
        _refuse_unknown("histories.", histories, self.behaviours, "the behaviours are")
        for behaviour, events in histories.items():
            _objects(f"histories.{behaviour}", events, "events, oldest first")
        most = self.max_candidates
        if "candidates" not in parts:
            raise RequestError(422, "candidates", f"is required: an array of 1 to {most} objects")
        candidates = _objects("candidates", parts["candidates"], "candidates")
        if not 1 <= len(candidates) <= most:
            raise RequestError(
                422, "candidates", f"must hold 1 to {most} candidates, found {len(candidates)}"
            )
        objects = [parts, user, context, histories, *candidates]
        num_keys = sum(map(len, objects)) + sum(len(e) for h in histories.values() for e in h)
        refuse_twice(body, num_keys)
        return user, context, histories, candidates

    # -- values -------------------------------------------------------------------------------

    def _rows(
        self, rows: Sequence[Json], where: str, types: Mapping[str, JsonType], shared: Json
    ) -> Blocks:
        """The columns that rows carry; where only some carry one, the others take `shared`."""
        names = list(rows[0]) if rows else list(types)
        values = _transposed(rows, names)
        if values is None:  # the rows have different columns
            names = list(dict.fromkeys(name for row in rows for name in row))
        if not types.keys() >= set(names):
            for at, row in enumerate(rows):
                _refuse_unknown(f"{where}[{at}].", row, types, "the columns are")
        for name in types:
            if name not in shared and (values is None or name not in names):
                _refuse_missing(name, rows, where)
        if values is None:
            values = [[row.get(name, shared.get(name)) for row in rows] for name in names]
        columns = dict(zip(names, values, strict=True))
        return _blocks(columns, types, len(rows), lambda at, name: f"{where}[{at}].{name}")

    def _refuse_null(self, rows: Blocks, shared: Blocks, places: Mapping[str, str]) -> None:
        for name in self.never_null:
            values = rows[name] if name in rows else shared[name]
            known = values
            if self.time and name == self.time.column:
                known = to_milliseconds(values, self.time.unit)
            if known.null_count:
                at = int(np.flatnonzero(as_numpy(known.is_null()))[0])
                path = f"candidates[{at}].{name}" if name in rows else places[name]
                found = values[at].as_py()
                raise RequestError(422, path, f"must be {self._need(name)}, found {shown(found)}")

    def _need(self, name: str) -> str:
        needed = self.columns[name].needed
        return needed if self.time and name == self.time.column else f"{needed}, never null"

    def _refuse_problems(self, rows: Blocks, shared: Blocks, places: Mapping[str, str]) -> None:
        """What `infnet prepare` would put into quarantine."""
        for name, feature in self._refusing.items():
            columns = sorted(feature.columns(name))
            own = [c for c in columns if c in rows]
            for problem in _problems(name, feature, rows, shared):
                if problem.rows.any():
                    at = int(np.flatnonzero(problem.rows)[0])
                    path = f"candidates[{at}].{own[0]}" if own else places[columns[0]]
                    raise RequestError(422, path, f"cannot be scored: {problem.reason}")

    def _events(self, behaviour: str, events: Sequence[Json]) -> Events:
        where = f"histories.{behaviour}"
        columns = self._rows(events, where, self.behaviours[behaviour], {})
        assert self.time is not None  # a FeatureSet with histories has a time
        name = self.time.column
        when = to_milliseconds(columns[name], self.time.unit)
        if when.null_count:
            at = int(np.flatnonzero(as_numpy(when.is_null()))[0])
            found = shown(events[at][name])
            raise RequestError(
                422, f"{where}[{at}].{name}", f"must be {self.columns[name].needed}, found {found}"
            )
        times = as_numpy(when)
        early = times[1:] < times[:-1]
        if early.any():
            at = int(early.argmax()) + 1
            before, found = (shown(events[i][name]) for i in (at - 1, at))
            raise RequestError(
                422,
                f"{where}[{at}].{name}",
                f"must not be earlier than that of the event before it ({before}), found {found}; "
                "send events oldest first",
            )
        for name, feature in self._refusing.items():
            if feature.columns(name) <= columns.keys():
                for problem in _problems(name, feature, columns, columns):
                    if problem.rows.any():
                        at = int(np.flatnonzero(problem.rows)[0])
                        read = min(feature.columns(name))
                        path = f"{where}[{at}].{read}"
                        raise RequestError(422, path, f"cannot be scored: {problem.reason}")
        return Events(columns, times)


def _problems(name: str, feature: Feature, rows: Blocks, shared: Blocks) -> list[Problem]:
    """What a feature finds in rows, or in the shared row if it reads nothing else."""
    if isinstance(feature, ScaledNumber):
        return feature.problems_of(
            [(rows if c in rows else shared).numbers(c) for c in feature.inputs()]
        )
    (column,) = feature.columns(name)  # a window
    values = rows[column] if column in rows else shared[column]
    return feature.problems(name, pa.table({column: values}))


def _may_refuse(name: str, feature: Feature, log: pa.Schema) -> bool:
    """Whether the feature can find a problem in values that have the log's types and are finite."""
    if isinstance(feature, WindowFeature):
        return True
    if not isinstance(feature, ScaledNumber):
        return False
    text = any(pa.types.is_string(log.field(c).type) for c in feature.columns(name))
    return text or feature.transform == "log1p"


def _types(encoder: Encoder, names: Iterable[str]) -> dict[str, JsonType]:
    log, time = encoder.features.schema, encoder.features.roles.time
    found = {name: json_type(log.field(name).type, name) for name in names}
    if time and time.column in found and not pa.types.is_temporal(log.field(time.column).type):
        kind, unit = found[time.column], _UNITS[time.unit]
        found[time.column] = replace(
            kind, needed=f"{kind.needed}: {unit}", schema=kind.schema | {"description": unit}
        )
    return found


def _object(path: str, value: Any) -> Any:
    if type(value) is not dict:
        raise RequestError(422, path, f"must be an object, found {shown(value)}")
    return value


def _objects(path: str, values: Any, what: str) -> Any:
    if type(values) is not list:
        raise RequestError(422, path, f"must be an array of {what}, found {shown(values)}")
    if not set(map(type, values)) <= {dict}:
        at = next(at for at, value in enumerate(values) if type(value) is not dict)
        _object(f"{path}[{at}]", values[at])
    return values


def _refuse_unknown(path: str, found: Iterable[str], known: Collection[str], what: str) -> None:
    for name in found:
        if name not in known:
            names = list(known)
            there = ", ".join(names[:40]) + (f", … ({len(names)})" if len(names) > 40 else "")
            raise RequestError(
                422,
                f"{path}{cut(name)}",
                f"is unknown{nearest(cut(name), names)}; {what} {there or 'none'}",
            )


def _refuse_missing(name: str, rows: Sequence[Json], where: str) -> None:
    at = next((at for at, row in enumerate(rows) if name not in row), None)
    if at is not None:
        other = f" (or user.{name}, context.{name})" if where == "candidates" else ""
        raise RequestError(
            422, f"{where}[{at}].{name}", f"is required{other}; send null if it is unknown"
        )


def _transposed(rows: Sequence[Json], names: Sequence[str]) -> Sequence[Sequence[Any]] | None:
    """The values of each column, if every row has exactly these columns."""
    if not rows or not names:
        return None if any(rows) else [()] * len(names)
    if any(len(row) != len(names) for row in rows):
        return None
    try:
        found = list(map(itemgetter(*names), rows))
    except KeyError:
        return None
    return [found] if len(names) == 1 else list(zip(*found, strict=True))


def _blocks(
    columns: Mapping[str, Sequence[Any]],
    types: Mapping[str, JsonType],
    rows: int,
    path: Callable[[int, str], str],
) -> Blocks:
    """Columns in the types of the log, each type a block."""
    by_type: dict[pa.DataType, list[str]] = {}
    for name in columns:
        by_type.setdefault(types[name].arrow, []).append(name)
    found = {
        kind: types[names[0]].whole(list(chain.from_iterable(columns[name] for name in names)))
        for kind, names in by_type.items()
    }
    if None not in found.values():
        return Blocks([Block(by_type[kind], values) for kind, values in found.items()], rows)
    arrays = {  # column by column, so that the first one that is wrong is told
        name: _array(values, types[name], lambda at, n=name: path(at, n))
        for name, values in columns.items()
    }
    return Blocks(
        [
            Block(names, pa.concat_arrays([arrays[name] for name in names]))
            for names in by_type.values()
        ],
        rows,
    )


def _array(values: Sequence[Any], kind: JsonType, path: Callable[[int], str]) -> pa.Array:
    try:
        return kind.array(values)
    except BadValueError as bad:
        needed = kind.item.needed if kind.item and bad.inside else kind.needed
        found = shown(bad.found)
        raise RequestError(
            422, path(bad.at) + bad.inside, f"must be {needed}, found {found}"
        ) from None
