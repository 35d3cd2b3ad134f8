"""A log with columns of every type, a reader of requests for it, and requests, good and spoilt."""

import json
from typing import Any

import pyarrow as pa
import pytest

from infnet.features import Feature
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.serve.request import Request, RequestError, RequestReader
from rayrun.config import Config, validate
from rayrun.data.columns import Columns, TimeColumn

LOG = pa.schema(
    {
        "user": pa.int32(),
        "at": pa.int64(),
        "item": pa.int64(),
        "tag": pa.string(),
        "price": pa.float32(),
        "age": pa.float64(),
        "new": pa.bool_(),
        "steps": pa.list_(pa.float64()),
        "pair": pa.list_(pa.float64(), 2),
        "past": pa.list_(pa.string()),
        "born": pa.date32(),
        "shown": pa.timestamp("ns"),
        "level": pa.string(),
        "click": pa.int8(),
    }
)
FEATURES: dict[str, dict] = {
    "item": {"type": "categorical", "column": "item"},
    "tag": {"type": "categorical", "column": "tag"},
    "price": {"type": "numeric", "column": "price", "transform": "log1p"},
    "age": {"type": "numeric", "column": "age"},
    "new": {"type": "categorical", "column": "new"},
    "steps": {"type": "window", "column": "steps", "length": 3},
    "pair": {"type": "window", "column": "pair", "length": 2},
    "past": {"type": "sequence", "column": "past", "fields": ["tag"]},
    "born": {"type": "categorical", "column": "born"},
    "shown": {"type": "categorical", "column": "shown"},
    "level": {"type": "numeric", "column": "level", "buckets": 4},
    "clicks": {
        "type": "sequence",
        "behaviour": {"column": "click", "value": 1},
        "fields": ["item", "level"],
    },
    "seen": {"type": "sequence", "fields": ["tag"]},
}
ROW = {
    "item": 7,
    "tag": "été",
    "price": 2.5,
    "age": 30,
    "new": True,
    "steps": [1, 2.5, None],
    "pair": [0.5, 1],
    "past": ["a", None],
    "born": "1990-02-28",
    "shown": "2022-04-20T12:00:00+08:00",
    "level": " 3 ",
}


class Written(Config):
    features: dict[str, Feature]


def make_reader(log: pa.Schema = LOG, unit: Any = "ms", **features: dict) -> RequestReader:
    written = validate(Written, {"features": features or FEATURES}, where="test.yaml").features
    roles = Columns(user="user", time=TimeColumn(column="at", unit=unit))
    return RequestReader(Encoder(FeatureSet(written, {}, roles, log), {}, {}), max_candidates=600)


READER = make_reader()


def body(**changes: Any) -> dict[str, Any]:
    """A good request, with some of its parts exchanged."""
    return {
        "user": {"user": 5},
        "context": {"at": 1000},
        "histories": {
            "clicks": [{"item": 1, "level": "2", "at": 10}, {"item": 2, "level": None, "at": 10}],
            "seen": [{"tag": "a", "at": 5}],
        },
        "candidates": [ROW, {**ROW, "tag": None}],
        **changes,
    }


def read(request: Any, reader: RequestReader = READER) -> Request:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    return reader.read(text)


def refused(request: Any, reader: RequestReader = READER) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(request, reader)
    assert caught.value.status == 422
    assert caught.value.body() == {
        "error": {"path": caught.value.path, "message": caught.value.message}
    }
    return caught.value


def with_value(name: str, value: Any) -> dict[str, Any]:
    return body(candidates=[ROW, {**ROW, name: value}])


def with_event(**changes: Any) -> dict[str, Any]:
    event = {"item": 1, "level": "2", "at": 10}
    return body(histories={"clicks": [event, {**event, **changes}]})
