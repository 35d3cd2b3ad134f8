"""A small log in which everything occurs, and an encoder fitted on it by plain loops over rows."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.hashing import row_keys
from rayrun.data.columns import Columns, TimeColumn

HOUR_MS = 3_600_000
CUT = 0.7
"""Share of the rows, in order of time, that train."""

TASKS = {
    "click": {"type": "binary", "label": "click"},
    "spend": {"type": "regression", "label": {"column": "spend", "scale": 0.5}},
}


ROLES = Columns(user="user", item="item", time=TimeColumn(column="at"), weight="weight")


def make_log(num_rows: int = 240, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    some = lambda values: [None if random.random() < 0.1 else v for v in values]  # noqa: E731
    number = random.normal(3, 2, num_rows).round(3)
    return pa.table(
        {
            "user": pa.array(random.integers(0, 12, num_rows), pa.int32()),
            "item": pa.array(random.integers(0, 30, num_rows), pa.int64()),
            "tag": pa.array(
                some(random.choice(["a", "b", "été", "长 tag of many bytes"], num_rows))
            ),
            "number": pa.array(some(number.tolist())),
            "shown": pa.array(random.integers(0, 9, num_rows)),
            "clicked": pa.array(random.integers(0, 4, num_rows)),
            "steps": pa.array(some([row.tolist() for row in random.random((num_rows, 5))])),
            "past": pa.array(
                [random.integers(0, 40, random.integers(0, 6)).tolist() for _ in range(num_rows)]
            ),
            "click": pa.array(some(random.integers(0, 2, num_rows).tolist()), pa.int8()),
            "spend": pa.array(random.exponential(2, num_rows)),
            # few distinct times, so that users have ties
            "at": pa.array(np.sort(random.integers(0, num_rows // 3, num_rows)) * HOUR_MS),
            "weight": pa.array(random.random(num_rows)),
            "__row_id": pa.array(np.arange(num_rows)),
        }
    )


def training_rows(log: pa.Table) -> pa.Table:
    return log.slice(0, int(CUT * log.num_rows))


def fit(features: FeatureSet, rows: pa.Table) -> Encoder:
    """Fit on training rows; the look-ups are made by loops, as a person would by hand."""
    rows = features.with_roles(rows)
    demands = features.demands()
    statistics = {
        name: statistic_table(features, rows, demand.key, demand.value)
        for name, demand in demands.statistics.items()
    }
    histories = {
        name: history_table(features, rows, demand) for name, demand in demands.histories.items()
    }
    return Encoder.fit(
        features,
        features.merge([features.summarise(rows)]),
        features.count(rows),
        statistics=statistics,
        histories=histories,
    )


def statistic_table(
    features: FeatureSet, rows: pa.Table, key: Iterable[str], value: str
) -> pa.Table:
    keys = row_keys(rows, list(key))
    name = "__label." + value.removeprefix("task:") if value.startswith("task:") else value
    values = rows[name].to_pylist() if name else [0.0] * rows.num_rows
    found: dict[int, list[float]] = {}
    for k, v in zip(keys.tolist(), values, strict=True):
        count_and_sum = found.setdefault(k, [0.0, 0.0])
        if v is not None:
            count_and_sum[0] += 1
            count_and_sum[1] += v
    return pa.table(
        {
            "key": pa.array(list(found), pa.int64()),
            "count": [c for c, _ in found.values()],
            "sum": [s for _, s in found.values()],
        }
    )


def history_table(features: FeatureSet, rows: pa.Table, demand: Any) -> pa.Table:
    keys = row_keys(rows, [features.roles.user])
    holds = demand.where.holds(rows) if demand.where else np.ones(rows.num_rows, dtype=bool)
    found: dict[int, list[dict]] = {}
    for at in np.flatnonzero(holds).tolist():
        event = {c: rows[c][at].as_py() for c in (*demand.columns, "__time")}
        found.setdefault(int(keys[at]), []).append(event)
    members = [rows.schema.field(c) for c in (*demand.columns, "__time")]
    return pa.table(
        {
            "key": pa.array(list(found), pa.int64()),
            "events": pa.array(
                [events[-demand.max_length :] for events in found.values()],
                pa.list_(pa.struct(members)),
            ),
        }
    )
