"""One request of the log: real, readable, encodable, and the same however the log is cut."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest

from infnet.data import sample
from infnet.features import Feature
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.request import encode_request
from infnet.tasks import Task
from rayrun.config import Config, validate
from rayrun.data.columns import Columns, TimeColumn
from tests.infnet.data import logs


class Written(Config):
    features: dict[str, Feature]
    tasks: dict[str, Task]


def feature_set(log: pa.Table, features: dict, columns: Columns) -> FeatureSet:
    raw = {"features": features, "tasks": {"click": {"type": "binary", "label": "click"}}}
    written = validate(Written, raw, where="test.yaml")
    return FeatureSet(written.features, written.tasks, columns, log.schema)


def record(features: FeatureSet, log: pa.Table, blocks: int = 1) -> dict:
    """What prepare does with Ray, with `blocks` blocks in an arbitrary order."""
    rows = features.with_roles(log.append_column("__row_id", pa.array(np.arange(log.num_rows))))
    order = np.random.default_rng(blocks).permutation(blocks)
    cuts = [rows.take(np.arange(at, rows.num_rows, blocks)) for at in order]
    keys = sample.choose(sample.merge([sample.find(features, one) for one in cuts]))
    return sample.request(features, [sample.collect(features, keys, one) for one in cuts])


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return logs.table(rows=900, users=60)


@pytest.fixture(scope="module")
def of_users(log) -> FeatureSet:
    features = {n: f for n, f in logs.FEATURES.items() if n not in ("item_like", "item_watch")}
    return feature_set(log, features, Columns(user="uid", item="iid", time=TimeColumn(column="ts")))


def test_it_is_a_user_of_the_log_with_what_they_did_before(log, of_users):
    found = record(of_users, log)
    assert list(found) == ["user", "context", "histories", "candidates"]
    user, now = found["user"]["uid"], found["context"]["ts"]
    mine = sorted((row for row in log.to_pylist() if row["uid"] == user), key=lambda row: row["ts"])
    shown = mine[-len(found["candidates"]) :]
    assert 4 <= len(shown) <= 8
    assert now == shown[0]["ts"]
    expected = sorted((row["iid"], row["price"]) for row in shown)
    assert sorted((c["iid"], c["price"]) for c in found["candidates"]) == expected
    clicked = [row for row in mine if row["ts"] < now and row["click"] == 1]
    assert len(clicked) > 1
    assert [e["ts"] for e in found["histories"]["clicked"]] == [e["ts"] for e in clicked][-6:]
    seen = [row["ts"] for row in mine if row["ts"] < now]
    assert [e["ts"] for e in found["histories"]["seen"]] == seen[-9:]
    assert set(found["histories"]["seen"][0]) == {"iid", "uid", "ts"}


@pytest.mark.parametrize("blocks", [2, 7, 40])
def test_it_does_not_depend_on_how_the_log_is_cut(log, of_users, blocks):
    assert record(of_users, log, blocks) == record(of_users, log)


def test_further_users_have_requests_of_their_own(log, of_users):
    rows = of_users.with_roles(log.append_column("__row_id", pa.array(np.arange(log.num_rows))))
    found = sample.find(of_users, rows)
    chosen = sample.choose(found)
    keys = sample.others(found, chosen)
    assert len({*keys, *chosen}) == 3
    users = set()
    for key in keys:
        asked = sample.request(of_users, [sample.collect(of_users, [key], rows)])
        users.add(asked["user"]["uid"])
        mine = [row for row in log.to_pylist() if row["uid"] == asked["user"]["uid"]]
        assert len(asked["candidates"]) >= 4
        assert {c["iid"] for c in asked["candidates"]} <= {row["iid"] for row in mine}
    assert len(users) == 2
    assert record(of_users, log)["user"]["uid"] not in users


def test_no_label_is_in_it(log, of_users):
    text = json.dumps(record(of_users, log))
    assert not any(f'"{name}"' in text for name in ("click", "like", "watch"))


def test_a_log_without_time_has_candidates_of_several_users(log):
    features = {n: logs.FEATURES[n] for n in ("user", "item", "price")}
    one_each = log.set_column(0, "uid", pa.array(np.arange(log.num_rows)))
    found = record(feature_set(log, features, Columns(user="uid")), one_each, 5)
    assert found["user"] == found["context"] == found["histories"] == {}
    assert len({c["uid"] for c in found["candidates"]}) == 6
    rows = {(r["uid"], r["iid"], r["price"]) for r in one_each.to_pylist()}
    assert {(c["uid"], c["iid"], c["price"]) for c in found["candidates"]} <= rows


def test_a_log_without_users_has_any_rows(log):
    features = {n: logs.FEATURES[n] for n in ("item", "price")}
    found = record(feature_set(log, features, Columns()), log, 3)
    assert len(found["candidates"]) == 6
    assert set(found["candidates"][0]) == {"iid", "price"}


def test_every_kind_of_column_stands_in_json_and_is_read_back():
    noon = datetime.datetime(2022, 4, 20, 12, tzinfo=datetime.UTC)
    log = pa.table(
        {
            "uid": ["a"] * 6,
            "at": pa.array([noon + datetime.timedelta(hours=h) for h in range(6)]),
            "born": [datetime.date(1990, 2, 28)] * 6,
            "price": [1.5, float("nan"), None, 2.0, 3.0, float("inf")],
            "steps": [[1.0, None], [float("nan")], [], None, [0.5], [2.0]],
            "past": [["x", "été"], [], None, ["x"], ["y"], []],
            "item": ["x", "y", "z", "x", "y", "z"],
            "fresh": [True, False, None, True, True, False],
            "click": [1, 0, 1, 1, 0, 1],
        }
    )
    features = feature_set(
        log,
        {
            "item": {"type": "categorical", "column": "item"},
            "born": {"type": "categorical", "column": "born"},
            "fresh": {"type": "categorical", "column": "fresh"},
            "at": {"type": "categorical", "column": "at"},
            "price": {"type": "numeric", "column": "price"},
            "steps": {"type": "window", "column": "steps", "length": 2},
            "past": {"type": "sequence", "column": "past", "fields": ["item"]},
            "clicks": {
                "type": "sequence",
                "fields": ["item"],
                "behaviour": {"column": "click", "value": 1},
            },
        },
        Columns(user="uid", item="item", time=TimeColumn(column="at")),
    )
    found = record(features, log)
    assert found["user"] == {"uid": "a", "born": "1990-02-28"}
    assert found["context"] == {"at": "2022-04-20T14:00:00+00:00"}
    assert [c["price"] for c in found["candidates"]] == [None, 2.0, 3.0, None]
    assert [c["steps"] for c in found["candidates"]] == [[], None, [0.5], [2.0]]
    sent = json.loads(json.dumps(found, allow_nan=False))
    rows = features.with_roles(log)
    encoder = Encoder.fit(
        features, features.merge([features.summarise(rows)]), features.count(rows)
    )
    encoded = encode_request(encoder, **sent)
    logged = features.with_roles(log.slice(2))
    assert encoded["time"].to_pylist() == [logged["__time"][0].as_py()] * 4
    for name in ("item", "born", "fresh"):
        feature = features.features[name]
        expected = feature.encode(name, logged, encoder.fitted[name])[f"c.{name}"]
        assert encoded[f"c.{name}"].to_pylist() == expected.to_pylist(), name
    assert encoded["s.clicks.ages"].to_pylist() == [[pytest.approx(2 / 24)]] * 4
