"""A request as rows: the same encoding for a served candidate as for a row of the log.

    {"user": {…}, "context": {…}, "histories": {behaviour: [events]}, "candidates": [rows]}

All values stand under the names of the log's columns. A candidate's row is `user`, `context` and
the candidate, in this order, the later winning. `histories` holds, for each sequence feature,
events of that behaviour with their time column; a behaviour left out has no events. Statistics are
those at the end of training.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from infnet.features.base import HistoryDemand
from infnet.features.columns import as_lists, as_numpy, ranges
from infnet.features.encoder import Encoder
from rayrun.config import ConfigError
from rayrun.data.columns import to_milliseconds

Row = Mapping[str, Any]


def encode_request(
    encoder: Encoder,
    *,
    user: Row,
    context: Row,
    histories: Mapping[str, Sequence[Row]],
    candidates: Sequence[Row],
) -> pa.Table:
    """The columns of a shard, one row per candidate, in their order; labels are null.

    An event enters a history if it is strictly earlier than the candidate's time; the most recent
    are kept. Columns that the features do not read are ignored; one that is nowhere in the request
    must be sent as null.

    Raises:
        ConfigError: with the path of the field: a missing column or time, a value of the wrong
            type, an unknown behaviour.
    """
    features = encoder.features
    shared = {**user, **context}
    columns: dict[str, pa.Array] = {"__row_id": pa.array(np.arange(len(candidates)))}
    for name in features.columns(labels=False):
        if candidates and name not in shared and not any(name in c for c in candidates):
            raise ConfigError(
                f"candidates[0].{name} is required (or user.{name}, context.{name}); "
                "send null if unknown"
            )
        values = [c.get(name, shared.get(name)) for c in candidates]
        columns[name] = _array(values, features.schema.field(name).type, "candidates", name)
    roles = features.roles
    for role in (roles.user, roles.time.column if roles.time else None):
        if role and columns[role].null_count:
            at = int(np.flatnonzero(as_numpy(columns[role].is_null()))[0])
            raise ConfigError(f"candidates[{at}].{role} must not be null")
    unknown = [behaviour for behaviour in histories if behaviour not in encoder.demands().histories]
    if unknown:
        raise ConfigError(
            f"histories.{unknown[0]} is unknown; "
            f"the behaviours are {', '.join(encoder.demands().histories) or '(none)'}"
        )
    events = {
        behaviour: _events(encoder, behaviour, demand, histories.get(behaviour, ()))
        for behaviour, demand in encoder.demands().histories.items()
    }
    return encode_arrays(encoder, shared={}, candidates=columns, histories=events)


def encode_arrays(
    encoder: Encoder,
    *,
    shared: Mapping[str, pa.Scalar],
    candidates: Mapping[str, pa.Array],
    histories: Mapping[str, pa.StructArray],
) -> pa.Table:
    """The same of values that already are in the log's types.

    Args:
        encoder: with its look-ups.
        shared: values that every candidate has.
        candidates: `__row_id` and the columns that are not in `shared`, one value per candidate.
        histories: of each behaviour the events, oldest first, with the columns it demands and
            `__time` in milliseconds.
    """
    count = len(candidates["__row_id"])
    repeated = {name: pa.repeat(value, count) for name, value in shared.items()}
    rows = encoder.features.with_roles(pa.table({**repeated, **candidates}), labels=False)
    # Candidates differ in their histories by their times alone, and most requests have one time.
    moments, moment = np.unique(as_numpy(rows["__time"].combine_chunks()), return_inverse=True)
    encoded: dict[str, dict[str, pa.Array]] = {}
    for behaviour, demand in encoder.demands().histories.items():
        events = histories[behaviour]
        end = np.searchsorted(as_numpy(events.field("__time")), moments, side="left")
        start = np.maximum(0, end - demand.max_length)
        taken = events.take(pa.array(ranges(start, end - start)))
        past = pa.table({"__time": moments, f"__history.{behaviour}": as_lists(taken, end - start)})
        feature = encoder.features.features[behaviour]
        columns = feature.encode(behaviour, past, encoder.fitted[behaviour])
        encoded[behaviour] = {name: lists.take(moment) for name, lists in columns.items()}
    derived = encoder.derive(rows, histories=False)
    return encoder.encode(derived, labels=False, encoded=encoded)


def _events(
    encoder: Encoder, behaviour: str, demand: HistoryDemand, events: Sequence[Row]
) -> pa.StructArray:
    """Oldest first, with `__time` in milliseconds. Events of one time keep their order."""
    role = encoder.features.roles.time
    assert role is not None  # a FeatureSet with histories has a time
    where = f"histories.{behaviour}"
    arrays = {}
    for name in dict.fromkeys([*demand.columns, role.column]):
        for at, event in enumerate(events):
            if name not in event:
                raise ConfigError(f"{where}[{at}].{name} is required; send null if unknown")
        kind = encoder.features.schema.field(name).type
        arrays[name] = _array([event[name] for event in events], kind, where, name)
    when = to_milliseconds(arrays[role.column], role.unit)
    if when.null_count:
        at = int(np.flatnonzero(as_numpy(when.is_null()))[0])
        found = events[at][role.column]
        raise ConfigError(f"{where}[{at}].{role.column} must be a time, found {found!r}")
    order = np.argsort(as_numpy(when), kind="stable")
    kept = {name: arrays[name] for name in demand.columns} | {"__time": when}
    struct = pa.StructArray.from_arrays(list(kept.values()), names=list(kept))
    return struct.take(pa.array(order))


def _array(values: Sequence[Any], kind: pa.DataType, where: str, name: str) -> pa.Array:
    taken = _moment if pa.types.is_temporal(kind) else _truth if _boolean(kind) else _no_truth
    wrong = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError)
    try:
        return pa.array([taken(value) for value in values], kind)
    except wrong:
        for at, value in enumerate(values):
            try:
                pa.scalar(taken(value), kind)
            except wrong:
                raise ConfigError(
                    f"{where}[{at}].{name} must be of type {kind}, found {value!r}"
                ) from None
        raise


def _moment(value: Any) -> Any:
    """JSON has no dates: they are ISO 8601 text, UTC unless it says otherwise."""
    if isinstance(value, int | float):
        raise TypeError("a number is no date")
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _truth(value: Any) -> Any:
    return value


def _no_truth(value: Any) -> Any:
    """Arrow would take true as 1.0."""
    if isinstance(value, bool) or (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(isinstance(one, bool) for one in value)
    ):
        raise TypeError("a truth value is no number")
    return value


def _boolean(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(getattr(kind, "value_type", kind))
