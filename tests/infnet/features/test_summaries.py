import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.features import summaries

numbers = st.lists(
    st.floats(allow_nan=False, allow_infinity=False) | st.just(float("nan")), max_size=30
)


@given(numbers)
def test_moments_are_exact(values):
    part = summaries.moments(np.array(values, dtype=np.float64))
    known = [Fraction(v) for v in values if not math.isnan(v)]
    assert part["count"] == len(known)
    assert Fraction(part["sum"]) == sum(known)
    assert Fraction(part["squares"]) == sum(v * v for v in known)


@given(numbers, st.lists(st.integers(0, 30), max_size=4), st.randoms())
def test_moments_do_not_depend_on_the_grouping(values, cuts, random):
    array = np.array(values, dtype=np.float64)
    parts = [
        summaries.moments(p) for p in np.split(array, sorted(min(c, len(array)) for c in cuts))
    ]
    random.shuffle(parts)
    assert summaries.merge_moments(parts) == summaries.moments(array)
    halves = [summaries.merge_moments(parts[:1]), summaries.merge_moments(parts[1:])]
    assert summaries.merge_moments(halves) == summaries.moments(array)


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e15])
def test_mean_and_deviation_survive_a_large_offset(offset):
    # textbook sums of squares lose every digit at 1e15
    values = offset + np.array([1.0, 2.0, 4.0, 9.0])
    mean, deviation = summaries.mean_and_deviation(summaries.moments(values))
    assert mean == offset + 4.0
    assert deviation == pytest.approx(math.sqrt(38 / 4), rel=1e-15)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_squares_beyond_float64_have_a_root(scale):
    mean, deviation = summaries.mean_and_deviation(summaries.moments(scale * np.array([1.0, 3.0])))
    assert mean == pytest.approx(2 * scale, rel=1e-15)
    assert deviation == pytest.approx(scale, rel=1e-15)


def test_nothing_has_mean_0():
    assert summaries.mean_and_deviation(summaries.moments(np.array([np.nan]))) == (0.0, 0.0)


def test_a_constant_has_no_deviation():
    values = np.full(1000, 0.1)
    assert summaries.mean_and_deviation(summaries.moments(values)) == (0.1, 0.0)


def test_the_sample_does_not_depend_on_the_grouping(monkeypatch):
    monkeypatch.setattr(summaries, "SAMPLE_ROWS", 50)
    random = np.random.default_rng(0)
    values, row_ids = random.random(1000), random.permutation(1000)
    whole = summaries.sample(values, row_ids)
    for parts in (2, 7, 100):
        order = random.permutation(1000)
        pieces = [summaries.sample(values[o], row_ids[o]) for o in np.array_split(order, parts)]
        while len(pieces) > 1:
            pieces = [
                summaries.merge_samples(pieces[at : at + 3]) for at in range(0, len(pieces), 3)
            ]
        assert pieces[0] == whole
    assert len(whole["values"]) == 50


def test_the_sample_is_uniform():
    # the mean of 8192 of 100,000 ranks: 0.5 ± 0.0032 (σ/√n); 4 σ
    ranks = np.arange(100_000) / 100_000
    found = summaries.sample(ranks, np.arange(100_000))
    assert len(found["values"]) == summaries.SAMPLE_ROWS
    assert abs(np.mean(found["values"]) - 0.5) < 4 * 0.0032


def test_missing_values_are_not_sampled():
    assert summaries.sample(np.array([np.nan, 1.0]), np.array([0, 1]))["values"] == [1.0]
