"""Which points the seeds tell apart, and the quantiles behind it."""

import numpy as np
import pytest
from scipy import stats

from infnet.tune.verdict import judge, pareto, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_the_quantile_is_that_of_student(freedom):
    for probability in (0.6, 0.975, 0.9995):
        exact = float(stats.t.ppf(probability, freedom))
        assert t_quantile(probability, freedom) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("probability", "freedom"), [(0.5, 3), (1.0, 3), (0.9, 0)])
def test_a_quantile_outside_of_its_range_is_refused(probability, freedom):
    with pytest.raises(ValueError, match=r"probability must be in \(.5, 1\) and freedom at least"):
        t_quantile(probability, freedom)


def test_two_points_are_judged_as_by_the_paired_t_test():
    """With two points the residual of the blocks is that of the paired differences."""
    scores = [[0.71, 0.74, 0.70, 0.73], [0.69, 0.70, 0.69, 0.70]]
    found = judge(scores, larger_is_better=True)
    interval = stats.ttest_rel(*scores).confidence_interval(0.95)
    (difference,) = [d for d in found.differences if d is not None]
    assert found.best == 0
    assert difference.low == pytest.approx(interval.low)
    assert difference.high == pytest.approx(interval.high)
    assert difference.told == (interval.low > 0)


def test_a_shift_that_all_points_share_is_no_spread():
    shift = np.array([0.0, 0.3, -0.2])
    scores = [list(level + shift) for level in (0.5, 0.6, 0.7)]
    found = judge(scores, larger_is_better=True)
    assert found.best == 2
    assert found.smallest == pytest.approx(0, abs=1e-12)
    assert [d.told for d in found.differences[:2]] == [True, True]


def test_points_of_equal_means_are_told_apart_in_at_most_a_twentieth_of_searches():
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        found = judge(random.standard_normal((6, 3)).tolist(), larger_is_better=True)
        wrong += any(d.told for d in found.differences if d is not None)
    # the interval allows for 5 comparisons, but not for the choice of the best after the fact:
    # twice the level, with 4 standard deviations of 400 draws
    assert wrong / 400 < 0.1 + 4 * (0.1 * 0.9 / 400) ** 0.5


def test_the_smaller_is_the_better_where_it_is_said():
    found = judge([[0.5, 0.6], [0.1, 0.2]], larger_is_better=False)
    assert found.best == 1
    assert found.differences[0].value == pytest.approx(0.4)


def test_one_seed_tells_nothing_apart():
    found = judge([[0.5], [0.9]], larger_is_better=True)
    assert found.smallest is None
    assert found.deviations == [None, None]
    assert not found.differences[0].told


@pytest.mark.parametrize("scores", [[], [[]], [[1.0], [1.0, 2.0]]])
def test_a_table_with_holes_is_refused(scores):
    with pytest.raises(ValueError, match="scores must have a row per point and as many seeds"):
        judge(scores, larger_is_better=True)


def test_the_front_holds_what_nothing_beats():
    rows = [[0.7, 10.0], [0.8, 30.0], [0.7, 20.0], [0.8, 30.0], [0.6, 5.0]]
    assert pareto(rows, [True, False]) == [0, 1, 3, 4]
