"""One request made of rows of the log, recorded by prepare: a user, what they did, what they saw.

A bundle answers it before it serves, and the server's page shows it as the example. The choice
depends on the log alone, not on how it was cut into blocks:

    find      per block: the `SKETCH` users whose hash is smallest, how often each stands there
    collect   per block: the last rows and events of the one who stands there most
    request   all of these rows together, as a caller would send them

Nothing here knows Ray.
"""

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infnet.data.passes import ROW_ID, TIME
from infnet.features.columns import plain
from infnet.features.feature_set import FeatureSet
from infnet.features.hashing import mix, row_keys
from rayrun.config import Json

FILE = "sample.json"
SKETCH = 64
CANDIDATES = 6
FEWEST = 4
"""Where no user has so many rows, candidates are single rows of several users."""
OTHERS = 2
"""Further users whose requests are kept, for whoever wants to try a service."""
EVENTS = 20
"""Most events of one behaviour: an example should be short enough to read."""


def find(features: FeatureSet, rows: pa.Table) -> pa.Table:
    """Of a block of good rows: some users (`key`, `order`) and their number of rows (`count`)."""
    user = features.roles.user
    keys = row_keys(rows, [user]) if user else rows[ROW_ID].to_numpy()
    found, counts = np.unique(keys, return_counts=True)
    return _smallest(found, counts)


def merge(parts: Sequence[pa.Table]) -> pa.Table:
    """What `find` tells of several blocks as one: a user kept of all is kept of each."""
    table = pa.concat_tables(parts)
    found, place = np.unique(table["key"].to_numpy(), return_inverse=True)
    counts = np.bincount(place, weights=table["count"].to_numpy(), minlength=len(found))
    return _smallest(found, counts.astype(np.int64))


def choose(found: pa.Table) -> list[int]:
    """Keys of the users whose rows make the request: one, or several who have one row each."""
    counts = found["count"].to_numpy()
    if counts.max(initial=0) >= FEWEST:
        return [int(found["key"][int(counts.argmax())].as_py())]
    return found["key"].to_pylist()[:CANDIDATES]


def others(found: pa.Table, chosen: Sequence[int]) -> list[int]:
    """Keys of further users with enough rows for a request of their own; most rows first."""
    table = found.filter(pa.array(found["count"].to_numpy() >= FEWEST))
    order = np.argsort(-table["count"].to_numpy(), kind="stable")
    keys = (int(key) for key in table["key"].to_numpy()[order])
    return [key for key in keys if key not in chosen][:OTHERS]


def collect(features: FeatureSet, keys: Sequence[int], rows: pa.Table) -> pa.Table:
    """The rows of a block that may enter the request: the last ones of the users, and events."""
    user = features.roles.user
    own = row_keys(rows, [user]) if user else rows[ROW_ID].to_numpy()
    rows = rows.filter(pa.array(np.isin(own, np.array(keys))))
    rows = rows.sort_by([(TIME, "ascending"), (ROW_ID, "ascending")])
    most = CANDIDATES + EVENTS
    kept = np.zeros(rows.num_rows, dtype=bool)
    for holds in [np.ones(rows.num_rows, dtype=bool), *_events(features, rows).values()]:
        kept[np.flatnonzero(holds)[-most:]] = True
    return rows.filter(pa.array(kept))


def request(features: FeatureSet, parts: Sequence[pa.Table]) -> Json:
    """`{"user", "context", "histories", "candidates"}` in raw columns, as plain JSON data.

    With one user the candidates are their last rows, asked about at the time of the first of them,
    and the histories hold what was strictly earlier. A column that is the same in all rows of the
    user stands under `user`, one that is the same in all candidates under `context`.
    """
    rows = pa.concat_tables(parts).sort_by([(TIME, "ascending"), (ROW_ID, "ascending")])
    roles = features.roles
    user, time = roles.user, roles.time.column if roles.time else None
    if user is None or len(rows[user].unique()) > 1:
        return _parts(features, rows.slice(0, CANDIDATES), {}, {})
    number = min(CANDIDATES, max(FEWEST, rows.num_rows // 2), rows.num_rows)
    candidates = rows.slice(rows.num_rows - number)
    histories: dict[str, list[Json]] = {}
    for name, holds in _events(features, rows).items():
        demand = features.demands().histories[name]
        earlier = holds & (rows[TIME].to_numpy() < candidates[TIME][0].as_py())
        events = rows.filter(pa.array(earlier))
        last = events.slice(max(0, events.num_rows - min(EVENTS, demand.max_length)))
        histories[name] = _records(last, [*demand.columns, time] if time else demand.columns)
    all_rows = _records(rows, features.columns(labels=False))
    same = {
        name: all_rows[0][name]
        for name in features.columns(labels=False)
        if name not in (time, roles.item)
        and all(row[name] == all_rows[0][name] for row in all_rows)
    }
    context = {time: _records(candidates, [time])[0][time]} if time else {}
    return _parts(features, candidates, same, context) | {"histories": histories}


def write(found: Json, directory: Path) -> None:
    """Write `sample.json`: the request, and under `others` those of further users."""
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / FILE).write_text(text, encoding="utf-8")


def _smallest(keys: np.ndarray, counts: np.ndarray) -> pa.Table:
    order = mix(keys.astype(np.uint64))
    kept = np.argsort(order, kind="stable")[:SKETCH]
    return pa.table({"key": keys[kept], "count": counts[kept].astype(np.int64)})


def _events(features: FeatureSet, rows: pa.Table) -> dict[str, np.ndarray]:
    """Which rows are events of each behaviour."""
    return {
        name: demand.where.holds(rows) if demand.where else np.ones(rows.num_rows, dtype=bool)
        for name, demand in features.demands().histories.items()
    }


def _parts(features: FeatureSet, candidates: pa.Table, user: Json, context: Json) -> Json:
    shared = {**user, **context}
    names = [name for name in features.columns(labels=False) if name not in shared]
    rows = _records(candidates, names)
    if shared:
        same = [n for n in names if all(r[n] == rows[0][n] for r in rows)]
        context = context | {n: rows[0][n] for n in same if n != features.roles.item}
    return {
        "user": user,
        "context": context,
        "histories": {},
        "candidates": [{n: v for n, v in row.items() if n not in context} for row in rows],
    }


def _records(rows: pa.Table, names: Sequence[str]) -> list[Json]:
    columns = {name: _plain_list(plain(rows[name])) for name in dict.fromkeys(names)}
    return [{name: column[at] for name, column in columns.items()} for at in range(rows.num_rows)]


def _plain_list(values: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(values.type):  # Python has no nanoseconds
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
    return [_json(value) for value in values.to_pylist()]


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_json(one) for one in value]
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return value
