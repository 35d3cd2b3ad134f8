"""What a good request is read as, in the types of the log, and how fast."""

import json
import time

import pyarrow as pa
import pytest

from rayrun.config import ConfigError
from tests.infnet.serve.request_bodies import (
    FEATURES,
    LOG,
    ROW,
    body,
    make_reader,
    read,
    refused,
    with_value,
)


def test_a_good_request_is_read_in_the_types_of_the_log():
    found = read(body())
    assert {n: (v.type, v.to_pylist()) for n, v in found.shared.items()} == {
        "user": (pa.int32(), [5]),
        "at": (pa.int64(), [1000]),
    }
    assert {n: v.type for n, v in found.candidates.items()} == {
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
    clicks = found.histories["clicks"]
    assert clicks.columns["item"].to_pylist() == [1, 2]
    assert clicks.columns["level"].to_pylist() == ["2", None]
    assert clicks.times.tolist() == [10, 10]
    assert len(found) == 2


def test_context_wins_over_user_and_candidates_over_both():
    found = read(
        body(
            user={"user": 5, "tag": "u", "age": 1},
            context={"at": 9, "tag": "c", "age": 2},
            candidates=[{k: v for k, v in ROW.items() if k != "tag"}] * 2,
        )
    )
    assert found.shared["tag"].to_pylist() == ["c"]
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
    assert set(found.candidates) == set()
    assert found.histories["seen"].times.tolist() == []


def test_null_is_a_value_where_the_log_may_have_none():
    found = read(body(candidates=[dict.fromkeys(ROW)]))
    assert all(found.candidates[name].null_count == 1 for name in ROW)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("item", 7.0, 7), ("age", 2**60 + 1, float(2**60)), ("price", 16777217, 16777216.0)],
)
def test_a_number_may_be_written_in_any_way_that_json_allows(name, value, expected):
    assert read(with_value(name, value)).candidates[name].to_pylist()[1] == expected


def test_times_in_iso_text_are_read_as_the_log_was():
    log = LOG.set(LOG.get_field_index("at"), pa.field("at", pa.string()))
    reader = make_reader(log, unit="iso", seen=FEATURES["seen"], tag=FEATURES["tag"])
    events = [{"tag": "a", "at": "2022-04-19"}, {"tag": "b", "at": "2022-04-19T01:00:00+01:00"}]
    request = {
        "user": {"user": 1, "at": "2022-04-20T00:00:00Z"},
        "histories": {"seen": events},
        "candidates": [{"tag": "x"}],
    }
    assert read(request, reader).histories["seen"].times.tolist() == [1_650_326_400_000] * 2
    for wrong in ("noon", ""):
        found = refused({**request, "user": {"user": 1, "at": wrong}}, reader)
        assert found.path == "user.at"
        assert "ISO 8601 date or date-time" in found.message


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
