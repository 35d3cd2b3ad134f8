"""Every way a body can be wrong is told with the field's path; everything else reaches the model."""

import json
import time
from typing import Any

import pyarrow as pa
import pytest

from infnet.features import Feature
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.serve.request import Request, RequestError, RequestReader
from rayrun.config import Config, ConfigError, validate
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


def test_a_good_request_is_read_in_the_types_of_the_log():
    found = read(body())
    assert {n: (v.type, v.as_py()) for n, v in found.shared.items()} == {
        "user": (pa.int32(), 5),
        "at": (pa.int64(), 1000),
    }
    assert {n: v.type for n, v in found.candidates.items() if n != "__row_id"} == {
        name: LOG.field(name).type for name in ROW
    }
    first = {name: values[0].as_py() for name, values in found.candidates.items()}
    assert [first[n] for n in ("tag", "age", "steps", "past")] == [
        "été",
        30.0,
        [1.0, 2.5, None],
        ["a", None],
    ]
    assert str(first["born"]) == "1990-02-28"
    assert first["shown"].isoformat() == "2022-04-20T04:00:00"
    assert found.candidates["tag"].to_pylist() == ["été", None]
    assert found.histories["clicks"].to_pylist() == [
        {"item": 1, "level": "2", "__time": 10},
        {"item": 2, "level": None, "__time": 10},
    ]
    assert len(found) == 2


def test_context_wins_over_user_and_candidates_over_both():
    found = read(
        body(
            user={"user": 5, "tag": "u", "age": 1},
            context={"at": 9, "tag": "c", "age": 2},
            candidates=[{k: v for k, v in ROW.items() if k != "tag"}] * 2,
        )
    )
    assert found.shared["tag"].as_py() == "c"
    assert "age" not in found.shared
    assert found.candidates["age"].to_pylist() == [30.0, 30.0]


def test_a_candidate_without_a_column_takes_the_shared_one():
    without = {k: v for k, v in ROW.items() if k != "age"}
    found = read(body(user={"user": 5, "age": 8}, candidates=[without, ROW]))
    assert found.candidates["age"].to_pylist() == [8.0, 30.0]


def test_everything_may_be_shared_and_histories_left_out():
    request = {"user": {"user": 5, "at": 1, **ROW}, "candidates": [{}, {}, {}]}
    found = read(request)
    assert len(found) == 3
    assert set(found.candidates) == {"__row_id"}
    assert found.histories["seen"].to_pylist() == []


def test_null_is_a_value_where_the_log_may_have_none():
    found = read(body(candidates=[dict.fromkeys(ROW)]))
    assert all(found.candidates[name].null_count == 1 for name in ROW)


@pytest.mark.parametrize("where", ["user", "context", "candidates"])
def test_an_unknown_field_is_named_with_the_nearest(where):
    wrong = {"vser": 1}
    request = {
        "user": body(user={"user": 5, **wrong}),
        "context": body(context={"at": 1, **wrong}),
        "candidates": body(candidates=[ROW, {**ROW, **wrong}]),
    }[where]
    found = refused(request)
    path = {"user": "user.vser", "context": "context.vser", "candidates": "candidates[1].vser"}
    assert found.path == path[where]
    assert "is unknown; the nearest is 'user'; the columns are user, at, item" in found.message


@pytest.mark.parametrize(
    ("request_", "path", "message"),
    [
        ([1], "", "must be an object with user, context, histories, candidates, found an array"),
        ({**body(), "candidats": 1}, "candidats", "is unknown; the nearest is 'candidates'"),
        (body(user=[]), "user", "must be an object, found an array of 0"),
        (body(context=None), "context", "must be an object, found null"),
        (body(histories=[]), "histories", "must be an object"),
        (
            body(histories={"clikcs": []}),
            "histories.clikcs",
            "is unknown; the nearest is 'clicks'; the behaviours are clicks, seen",
        ),
        (body(histories={"clicks": {}}), "histories.clicks", "must be an array of events"),
        (
            body(histories={"clicks": [7]}),
            "histories.clicks[0]",
            "must be an object, found 7",
        ),
        ({"user": {}}, "candidates", "is required: an array of 1 to 600 objects"),
        (body(candidates={}), "candidates", "must be an array of candidates, found an object"),
        (body(candidates=[ROW, "x"]), "candidates[1]", 'must be an object, found "x"'),
        (body(candidates=[]), "candidates", "must hold 1 to 600 candidates, found 0"),
        (body(candidates=[ROW] * 601), "candidates", "must hold 1 to 600 candidates, found 601"),
    ],
)
def test_a_wrong_structure_is_told_with_its_path(request_, path, message):
    found = refused(request_)
    assert (found.path, message in found.message) == (path, True), found.message


@pytest.mark.parametrize(
    ("name", "value", "path", "message"),
    [
        ("item", True, "item", "must be a 64-bit integer, found true"),
        ("item", "7", "item", 'found "7"'),
        ("item", 7.5, "item", "found 7.5"),
        ("item", 2**63, "item", "found 9223372036854775808"),
        ("item", 10**400, "item", "found an integer of many digits"),
        ("user", 2**31, "user", "an integer from -2147483648 to 2147483647"),
        ("tag", 7, "tag", "text in quotation marks, found 7"),
        ("tag", {"a": 1}, "tag", "found an object"),
        ("tag", ["a"], "tag", "found an array of 1"),
        ("price", True, "price", "a number within ±3.4e+38, found true"),
        ("price", "1", "price", 'found "1"'),
        ("price", 1e39, "price", "found 1e+39"),
        ("age", 10**400, "age", "found an integer of many digits"),
        ("new", 1, "new", "true or false"),
        ("steps", "abc", "steps", "an array of values, each a finite number"),
        ("steps", [1, 2, "x"], "steps[2]", 'a finite number, found "x"'),
        ("pair", [1], "pair", "an array of 2 values"),
        ("past", [1, 2], "past[0]", "text in quotation marks"),
        ("born", "28.2.1990", "born", "an ISO 8601 date such as"),
        ("born", 7, "born", "an ISO 8601 date such as"),
        ("shown", 1650412800000, "shown", "an ISO 8601 date-time such as"),
        ("shown", "2500-01-01", "shown", "an ISO 8601 date-time such as"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_told_with_what_is_needed(name, value, path, message):
    found = refused(with_value(name, value))
    assert found.path == f"candidates[1].{path}"
    assert message in found.message
    assert refused(body(context={"at": 1, name: value})).path == f"context.{path}"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("item", 7.0, 7), ("age", 2**60 + 1, float(2**60)), ("price", 16777217, 16777216.0)],
)
def test_a_number_may_be_written_in_any_way_that_json_allows(name, value, expected):
    assert read(with_value(name, value)).candidates[name].to_pylist()[1] == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("price", -1, "price is -1 or less, under log1p"),
        ("steps", [1, 2], "the window steps has another number of steps than 3"),
        ("level", "high", "level is not a finite number"),
    ],
)
def test_what_the_log_would_have_quarantined_is_refused(name, value, message):
    found = refused(with_value(name, value))
    assert (found.path, found.message) == (f"candidates[1].{name}", f"cannot be scored: {message}")
    shared = {k: v for k, v in ROW.items() if k != name}
    found = refused(body(user={"user": 5, name: value}, candidates=[shared]))
    assert found.path == f"user.{name}"


def test_a_missing_column_is_named_with_the_places_it_may_stand_in():
    found = refused(body(user={}))
    assert found.path == "candidates[0].user"
    assert found.message == "is required (or user.user, context.user); send null if it is unknown"
    without = {k: v for k, v in ROW.items() if k != "tag"}
    assert refused(body(candidates=[ROW, without])).path == "candidates[1].tag"


@pytest.mark.parametrize(
    ("request_", "path", "message"),
    [
        (body(user={"user": None}), "user.user", "never null, found null"),
        (
            body(user={}, candidates=[{**ROW, "user": 5}, {**ROW, "user": None}]),
            "candidates[1].user",
            "never null, found null",
        ),
        (body(context={"at": None}), "context.at", "milliseconds since 1970-01-01 UTC, found null"),
        (body(context={"at": "noon"}), "context.at", 'since 1970-01-01 UTC, found "noon"'),
        (with_event(at=9), "histories.clicks[1].at", "event before it (10), found 9; send events"),
        (with_event(at=None), "histories.clicks[1].at", "milliseconds since 1970-01-01 UTC, found"),
        (with_event(colour=1), "histories.clicks[1].colour", "the columns are item, level, at"),
        (with_event(level="high"), "histories.clicks[1].level", "level is not a finite number"),
        (
            body(histories={"clicks": [{"item": 1, "level": None}]}),
            "histories.clicks[0].at",
            "is required; send null",
        ),
    ],
)  # fmt: skip
def test_users_and_times_are_never_unknown_and_events_are_in_order(request_, path, message):
    found = refused(request_)
    assert (found.path, message in found.message) == (path, True), found.message


def test_times_in_iso_text_are_read_as_the_log_was():
    log = LOG.set(LOG.get_field_index("at"), pa.field("at", pa.string()))
    reader = make_reader(log, unit="iso", seen=FEATURES["seen"], tag=FEATURES["tag"])
    events = [{"tag": "a", "at": "2022-04-19"}, {"tag": "b", "at": "2022-04-19T01:00:00+01:00"}]
    request = {
        "user": {"user": 1, "at": "2022-04-20T00:00:00Z"},
        "histories": {"seen": events},
        "candidates": [{"tag": "x"}],
    }
    assert [e["__time"] for e in read(request, reader).histories["seen"].to_pylist()] == [
        1_650_326_400_000
    ] * 2
    for wrong in ("noon", ""):
        found = refused({**request, "user": {"user": 1, "at": wrong}}, reader)
        assert found.path == "user.at"
        assert "ISO 8601 date or date-time" in found.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the body must be JSON in UTF-8: it is empty"),
        (b'{"user": {},\n "candidates": [}', "line 2 column 17"),
        (b'{"user": {"age": NaN}}', "NaN is no JSON number at line 1 column 18; send null"),
        (b'{"user": {"age": -Infinity}}', "-Infinity is no JSON number at line 1 column 18"),
        (b'{"user": {"tag": "\xff"}}', "line 1 column"),
        (b'{"user": {"tag": "\\ud800"}}', "line 1 column"),
        (b"[" * 5000, "recursion limit exceeded"),
        (b'{"user": {}} {}', "trailing characters at line 1 column"),
    ],
)
def test_a_body_that_is_not_json_is_told_with_its_place(text, message):
    found = refused(text)
    assert found.path == ""
    assert message in found.message


def test_a_number_that_overflows_is_refused():
    assert refused(json.dumps(body()).replace("2.5", "1e999").encode()).message.endswith(
        "found inf"
    )


@pytest.mark.parametrize("space", ["", " ", "\n"])
@pytest.mark.parametrize("key", ["item", "\\u0069tem"])
def test_a_key_that_stands_twice_is_refused(space, key):
    text = json.dumps(body()).replace('"item": 7,', f'"{key}"{space}:7, "item": 7,', 1)
    found = refused(text.encode())
    assert (found.path, "stands twice" in found.message) == ("item", True)


def test_colons_in_values_are_no_keys():
    request = body(user={"user": 5, "tag": 'a":"b" : '}, candidates=[{**ROW, "tag": '":":":"'}])
    assert read(request).candidates["tag"].to_pylist() == ['":":":"']


@pytest.mark.parametrize("place", ["name", "value"])
def test_a_huge_text_is_not_repeated(place):
    huge = "x" * 1_000_000
    found = refused(with_value(huge, 1) if place == "name" else with_value("item", huge))
    assert len(str(found)) < 500


def test_a_type_that_json_cannot_hold_is_refused_before_serving():
    log = pa.schema({"user": pa.int64(), "at": pa.int64(), "took": pa.duration("s")})
    with pytest.raises(
        ConfigError, match=r"'took' has the type duration\[s\], which a JSON request"
    ):
        make_reader(log, took={"type": "categorical", "column": "took"})


def test_checking_512_candidates_of_100_columns_costs_no_more_than_a_few_decodings():
    names = [f"n{at}" for at in range(100)]
    log = pa.schema({"user": pa.int64(), "at": pa.int64(), **dict.fromkeys(names, pa.float64())})
    reader = make_reader(log, **{n: {"type": "numeric", "column": n} for n in names})
    rows = [{n: at + 0.125 for n in names} for at in range(512)]
    text = json.dumps(body(histories={}, candidates=rows)).encode()

    def fastest(work) -> float:
        took = []
        for _ in range(7):
            start = time.perf_counter()
            work(text)
            took.append(time.perf_counter() - start)
        return min(took)

    assert fastest(reader.read) < 3 * fastest(json.loads)
