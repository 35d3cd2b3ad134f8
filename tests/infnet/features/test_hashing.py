import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.features.hashing import hash_values, mix, row_keys
from rayrun.config import ConfigError

GOLDEN = {
    "a": 17106707319094771287,
    "": 12035550249420947055,
    None: 5213799014377153125,
    "hello world, longer than eight": 8712688685607634829,
    "7": 16057123716148763147,
}
"""Hashes stand in shards, vocabularies and look-ups: they must never change."""

MASK = 2**64 - 1


def mix_one(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_one(text: str | None, seed: int = 0) -> int:
    """The row-wise twin of `hash_values`, in Python's integers."""
    if text is None:
        return mix_one(0x1F83D9ABFB41BD6B ^ seed)
    data = text.encode()
    state = mix_one(mix_one(seed) ^ len(data))
    for at in range(0, len(data), 8):
        state = mix_one(state ^ int.from_bytes(data[at : at + 8], "little"))
    return state


def test_hashes_are_those_of_the_golden_list():
    assert hash_values(pa.array(list(GOLDEN), pa.string())).tolist() == list(GOLDEN.values())


def test_row_keys_are_those_of_the_golden_list():
    rows = pa.table({"user": [7, 8, None], "tag": ["a", None, "a"]})
    assert row_keys(rows, ["user"]).tolist() == [
        8028561858074381573,
        hash_one("8") >> 1,
        2606899507188576562,
    ]
    one_key = (mix_one(hash_one("7")) ^ hash_one("a", seed=1)) >> 1
    assert row_keys(rows, ["user", "tag"]).tolist()[0] == one_key


def test_mixing_is_splitmix64():
    # the first outputs of the reference implementation from the state 0
    state = np.array([0], dtype=np.uint64)
    assert mix(state).tolist() == [0xE220A8397B1DCDAF]


@given(st.lists(st.none() | st.text(max_size=40)), st.integers(0, 5))
def test_the_vectorised_hash_equals_the_row_wise_one(values, seed):
    found = hash_values(pa.array(values, pa.string()), seed)
    assert found.tolist() == [hash_one(value, seed) for value in values]


@given(st.lists(st.none() | st.text(max_size=20), min_size=1), st.data())
def test_a_slice_is_hashed_like_its_values(values, data):
    start = data.draw(st.integers(0, len(values)))
    array = pa.array(values, pa.string())
    assert hash_values(array.slice(start)).tolist() == hash_values(array).tolist()[start:]


def test_one_value_has_one_hash_whatever_its_type():
    sevens = [
        pa.array([7], pa.int8()),
        pa.array([7], pa.uint64()),
        pa.array([7.0]),
        pa.array(["7"]),
        pa.array(["7"], pa.large_string()),
        pa.array(["7"]).dictionary_encode(),
        pa.chunked_array([[], [7]], pa.int32()),
    ]
    assert {int(hash_values(seven)[0]) for seven in sevens} == {GOLDEN["7"]}


def test_a_key_of_two_columns_knows_their_order():
    rows = pa.table({"a": ["x"], "b": ["y"]})
    assert row_keys(rows, ["a", "b"]) != row_keys(rows, ["b", "a"])


def test_keys_are_positive_int64():
    keys = row_keys(pa.table({"a": np.arange(10_000)}), ["a"])
    assert keys.dtype == np.int64
    assert keys.min() >= 0
    assert len(np.unique(keys)) == 10_000


def test_buckets_fill_evenly():
    # chi-square of 100 buckets over 100,000 values: mean 99, sd 14
    counts = np.bincount((hash_values(pa.array(np.arange(100_000))) % 100).astype(int))
    assert 99 - 5 * 14 < ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * 14


def test_lists_are_no_values():
    with pytest.raises(
        ConfigError, match=r"a number, text, a truth value or a date, found the type list"
    ):
        hash_values(pa.array([[1]]))
