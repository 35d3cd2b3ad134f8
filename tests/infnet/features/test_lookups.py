import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.features.lookups import Lookup, first_not_before, histories_of, statistics_of
from rayrun.config import ConfigError


def history_lookup(by_key: dict[int, list[int]]) -> Lookup:
    events = [[{"item": 10 * t, "__time": t} for t in times] for times in by_key.values()]
    kind = pa.list_(pa.struct([("item", pa.int64()), ("__time", pa.int64())]))
    table = {"key": pa.array(list(by_key), pa.int64()), "events": pa.array(events, kind)}
    return Lookup.of(pa.table(table), "features.h")


def test_keys_are_found_in_any_order():
    table = pa.table({"key": [30, 10, 20], "count": [3.0, 1.0, 2.0], "sum": [0.3, 0.1, 0.2]})
    count, total = statistics_of(Lookup.of(table, "features.s"), np.array([20, 5, 30, 99, 10]))
    assert count.tolist() == [2, 0, 3, 0, 1]
    assert total.tolist() == [0.2, 0, 0.3, 0, 0.1]


def test_an_empty_table_knows_nothing():
    empty = pa.table({"key": pa.array([], pa.int64()), "count": [], "sum": []})
    count, total = statistics_of(Lookup.of(empty, "features.s"), np.array([1, 2]))
    assert count.tolist() == total.tolist() == [0, 0]
    assert histories_of(history_lookup({}), np.array([1]), np.array([5])).to_pylist() == [[]]


def test_a_key_that_stands_twice_is_refused():
    table = pa.table({"key": [1, 2, 1], "count": [1.0] * 3, "sum": [1.0] * 3})
    with pytest.raises(ConfigError, match=r"features\.s: a key stands twice"):
        Lookup.of(table, "features.s")


def test_only_strictly_earlier_events_are_seen():
    lookup = history_lookup({1: [5, 7, 7, 9], 2: [6], 3: []})
    keys, times = np.array([1, 1, 1, 2, 2, 3, 4]), np.array([7, 8, 5, 6, 7, 9, 9])
    found = histories_of(lookup, keys, times).to_pylist()
    assert [[e["__time"] for e in events] for events in found] == [
        [5],
        [5, 7, 7],
        [],
        [],
        [6],
        [],
        [],
    ]
    assert found[1][0] == {"item": 50, "__time": 5}


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1), st.data())
def test_the_search_in_stretches_equals_one_search_each(stretches, data):
    stretches = [sorted(s) for s in stretches]
    when = np.array([t for s in stretches for t in s], dtype=np.int64)
    stop = np.cumsum([len(s) for s in stretches])
    start = stop - [len(s) for s in stretches]
    times = np.array([data.draw(st.integers(-1, 10)) for _ in stretches])
    found = first_not_before(when, start, stop, times)
    expected = [np.searchsorted(s, t, side="left") for s, t in zip(stretches, times, strict=True)]
    assert (found - start).tolist() == expected
