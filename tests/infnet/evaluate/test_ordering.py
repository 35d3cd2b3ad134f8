import numpy as np
import pytest

from infnet.evaluate.ordering import Concordance, ascending, monotone_bits, run_starts


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_order_is_that_of_a_stable_sort(kind):
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=5000), 2).astype(kind)
    np.testing.assert_array_equal(ascending(values), np.argsort(values, kind="stable"))


def test_float64_scores_that_float32_cannot_tell_apart_keep_their_order():
    values = 0.5 + np.array([3, 1, 2, 0]) * 1e-15
    np.testing.assert_array_equal(ascending(values), [3, 1, 2, 0])


def test_zero_and_minus_zero_are_tied():
    np.testing.assert_array_equal(ascending(np.array([0.0, -0.0, -1.0, 0.0])), [2, 0, 1, 3])
    bits = monotone_bits(np.array([-0.0, 0.0], np.float32))
    assert bits[0] == bits[1]


def test_concordance_counts_every_pair_once_and_ties_half():
    rng = np.random.default_rng(1)
    score = np.sort(rng.integers(0, 9, 60)).astype(float)
    a, b = rng.random((2, 60))
    starts = run_starts(score[1:] != score[:-1])
    found = Concordance(starts, a, b, np.zeros(60, np.int32))
    pairs = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    assert found.point() == pytest.approx(a @ pairs @ b / (a.sum() * b.sum()), rel=1e-12)


def test_replicates_count_a_unit_as_often_as_its_weight_says():
    rng = np.random.default_rng(2)
    score = np.sort(rng.integers(0, 9, 60)).astype(float)
    a, b = rng.integers(0, 2, (2, 60)).astype(float)
    unit = rng.integers(0, 5, 60).astype(np.int32)
    starts = run_starts(score[1:] != score[:-1])
    weights = rng.integers(0, 3, (4, 5)).astype(float)
    found = Concordance(starts, a, b, unit).replicates(weights)
    pairs = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    for value, weight in zip(found, weights, strict=True):
        wa, wb = a * weight[unit], b * weight[unit]
        assert value == pytest.approx(wa @ pairs @ wb / (wa.sum() * wb.sum()), rel=1e-12)
