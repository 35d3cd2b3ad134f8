"""The fixtures of the feature tests."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_log import ROLES, TASKS, fit, make_log, training_rows
from hypothesis import settings

from infnet.features import Feature
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.tasks import Task
from rayrun.config import Config, validate

# the same examples on every machine, however busy it is
settings.register_profile("features", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("features")


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


@pytest.fixture(scope="session")
def feature_set(parse: Callable[..., Written], union: dict, log: pa.Table) -> FeatureSet:
    written = parse(union, TASKS)
    return FeatureSet(written.features, written.tasks, ROLES, log.schema)


@pytest.fixture(scope="session")
def encoder(feature_set: FeatureSet, log: pa.Table) -> Encoder:
    return fit(feature_set, training_rows(log))


@pytest.fixture(scope="session")
def later(encoder: Encoder, log: pa.Table) -> pa.Table:
    """The rows after training, with derived columns."""
    return encoder.derive(log.slice(training_rows(log).num_rows))
