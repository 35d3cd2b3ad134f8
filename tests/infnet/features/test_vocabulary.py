import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.features import vocabulary
from infnet.features.vocabulary import Vocabulary


def fitted(values: list, min_count: int = 1, max_size: int = 100) -> Vocabulary:
    return Vocabulary.fit(
        vocabulary.count(pa.array(values)), min_count=min_count, max_size=max_size
    )


def test_the_most_frequent_value_comes_first_and_ties_go_by_text():
    assert fitted(["b", "a", "c", "c", None]).values.to_pylist() == ["c", "a", "b", None]


def test_rare_values_and_those_beyond_the_size_are_unknown():
    known = fitted(["a"] * 3 + ["b"] * 2 + ["c"] * 2 + ["d"], min_count=2, max_size=2)
    assert known.ids(pa.array(["a", "b", "c", "d", "e", None])).tolist() == [2, 3, 1, 1, 1, 1]
    assert known.rows == 4


def test_null_is_a_value_like_any_other():
    known = fitted([None, None, "a"])
    assert known.ids(pa.array(["a", None, "b"])).tolist() == [3, 2, 1]


def test_an_empty_vocabulary_knows_nothing():
    assert fitted(["a"], min_count=2).ids(pa.array(["a", None])).tolist() == [1, 1]


def test_numbers_are_known_by_their_text():
    assert fitted([7, 8, 8]).ids(pa.array(["8", "7", "08"])).tolist() == [2, 3, 1]


@given(
    st.lists(st.none() | st.sampled_from("abcdefg"), max_size=40), st.integers(1, 6), st.randoms()
)
def test_the_ids_do_not_depend_on_the_grouping(values, parts, random):
    pieces = [
        vocabulary.count(pa.array(part.tolist(), pa.string()))
        for part in np.array_split(np.array(values, dtype=object), parts)
    ]
    random.shuffle(pieces)
    merged = vocabulary.merge([vocabulary.merge(pieces[:2]), *pieces[2:]])
    split = Vocabulary.fit(merged, min_count=2, max_size=3)
    counts = vocabulary.count(pa.array(values, pa.string()))
    assert split.values.equals(Vocabulary.fit(counts, min_count=2, max_size=3).values)


def test_a_large_vocabulary_equals_a_dictionary():
    random = np.random.default_rng(0)
    values = random.integers(0, 10**9, 20_000)
    known = fitted(values.tolist(), max_size=10_000)
    of = {v: at + 2 for at, v in enumerate(known.values.to_pylist())}
    asked = np.concatenate([values[:500], random.integers(0, 10**9, 500)])
    assert known.ids(pa.array(asked)).tolist() == [of.get(str(v), 1) for v in asked]


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_the_layout_of_text_does_not_matter(kind):
    assert fitted(["a", "b"]).ids(pa.array(["b", "a", "x"]).cast(kind)).tolist() == [3, 2, 1]
