"""A small log in which everything occurs, and its encoder, derived by plain loops over the rows."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from infnet.features import Feature
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.hashing import row_keys
from infnet.tasks import Task
from rayrun.config import Config, validate
from rayrun.data.columns import Columns, TimeColumn

# the same examples on every machine, however busy it is
settings.register_profile("features", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("features")

HOUR_MS = 3_600_000
CUT = 0.7
"""Share of the rows, in order of time, that train."""


class Written(Config):
    features: dict[str, Feature] = {}
    tasks: dict[str, Task] = {}


@pytest.fixture(scope="session")
def parse() -> Callable[..., Written]:
    """Features and tasks as a person writes them."""

    def parsed(features: Mapping[str, Any], tasks: Mapping[str, Any] | None = None) -> Written:
        raw = {"features": dict(features), "tasks": dict(tasks or {})}
        return validate(Written, raw, where="test.yaml")

    return parsed


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


@pytest.fixture(scope="session")
def log() -> pa.Table:
    return make_log()


@pytest.fixture(scope="session")
def vectors_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vectors") / "vectors.parquet"
    random = np.random.default_rng(1)
    table = {"id": list(range(25)), "vector": random.random((25, 3)).tolist()}
    pq.write_table(pa.table(table), path)
    return str(path)


@pytest.fixture(scope="session")
def union(vectors_file: str) -> dict[str, dict]:
    """Every feature type, in each of its forms."""
    return {
        "user": {"type": "categorical", "column": "user"},
        "item": {"type": "categorical", "column": "item", "encoding": _vocabulary(min_count=4)},
        "tag": {"type": "categorical", "column": "tag", "dim": 8, "cold_start": "mean"},
        "tag_hash": {"type": "categorical", "column": "tag", "encoding": _hash(7)},
        "number": {"type": "numeric", "column": "number"},
        "number_zero": {
            "type": "numeric",
            "column": "number",
            "transform": "signed_log",
            "normalise": "minmax",
            "missing": "zero",
        },
        "level": {"type": "numeric", "column": "number", "buckets": 6, "dim": 8},
        "rate": {
            "type": "ratio",
            "numerator": "clicked",
            "denominator": "shown",
            "normalise": "none",
        },
        "gap": {"type": "delta", "a": "shown", "b": "clicked", "transform": "signed_log"},
        "steps": {"type": "window", "column": "steps", "length": 5},
        "vector": {"type": "pretrained", "column": "item", "path": vectors_file, "width": 3},
        "clicks": {
            "type": "sequence",
            "fields": ["item", "level"],
            "behaviour": {"column": "click", "value": 1},
            "max_length": 4,
            "decay": 0.5,
        },
        "seen": {"type": "sequence", "fields": ["item", "tag"], "share_tables": False},
        "past": {"type": "sequence", "fields": ["item"], "column": "past", "max_length": 3},
        "item_click": {
            "type": "statistic",
            "key": ["item"],
            "value": "task:click",
            "outputs": ["count", "mean", "logit"],
        },
        "pair_spend": {
            "type": "statistic",
            "key": ["user", "tag"],
            "value": "spend",
            "outputs": ["mean"],
            "normalise": True,
        },
        "user_rows": {"type": "statistic", "key": ["user"], "outputs": ["count"]},
    }


def _vocabulary(**settings: int) -> dict:
    return {"type": "vocabulary", **settings}


def _hash(buckets: int) -> dict:
    return {"type": "hash", "buckets": buckets}


TASKS = {
    "click": {"type": "binary", "label": "click"},
    "spend": {"type": "regression", "label": {"column": "spend", "scale": 0.5}},
}


ROLES = Columns(user="user", item="item", time=TimeColumn(column="at"), weight="weight")


@pytest.fixture(scope="session")
def feature_set(parse: Callable[..., Written], union: dict, log: pa.Table) -> FeatureSet:
    written = parse(union, TASKS)
    return FeatureSet(written.features, written.tasks, ROLES, log.schema)


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


@pytest.fixture(scope="session")
def encoder(feature_set: FeatureSet, log: pa.Table) -> Encoder:
    return fit(feature_set, training_rows(log))


@pytest.fixture(scope="session")
def later(encoder: Encoder, log: pa.Table) -> pa.Table:
    """The rows after training, with derived columns."""
    return encoder.derive(log.slice(training_rows(log).num_rows))
