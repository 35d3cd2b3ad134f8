import numpy as np
import pytest

from infnet.evaluate.bootstrap import interval, user_weights
from infnet.evaluate.metrics import compute
from infnet.evaluate.predictions import Predictions, concatenate
from tests.infnet.evaluate.scored_log import TASKS, predictions, scored


def test_weights_are_poisson_with_mean_one():
    drawn = user_weights(0, 0, 200, 1000)
    counts = np.bincount(drawn.astype(int).ravel(), minlength=5)[:5] / drawn.size
    expected = np.exp(-1) / np.array([1, 1, 2, 6, 24])
    error = np.sqrt(expected * (1 - expected) / drawn.size)
    assert (np.abs(counts - expected) < 5 * error + 2.0**-16).all()


def test_replicates_do_not_depend_on_how_they_are_grouped():
    np.testing.assert_array_equal(user_weights(3, 0, 4, 9)[2:], user_weights(3, 2, 2, 9))
    assert (user_weights(3, 0, 4, 9) != user_weights(4, 0, 4, 9)).any()


def test_a_replicate_is_the_metric_of_the_rows_of_the_drawn_users():
    rows = scored()
    users = np.unique(rows.user)
    found = compute(predictions(rows), TASKS, bootstrap=30, seed=5)
    weights = user_weights(5, 0, 30, users.size)
    for replicate in (0, 26):
        drawn = []
        for user, times in zip(users, weights[replicate].astype(int), strict=True):
            for copy in range(times):  # a user drawn twice is two users
                mine = rows.take(rows.user == user)
                drawn.append(
                    type(mine)(mine.row_id, mine.user + copy, *list(vars(mine).values())[2:])
                )
        repeated = compute(predictions(concatenate(drawn, 3)), TASKS)
        for task in TASKS:
            for metric, value in repeated.values[task].items():
                assert found.replicates[task][metric][replicate] == pytest.approx(
                    value, rel=1e-9
                ), metric


def test_first_order_replicates_above_the_bound_spread_like_exact_ones(tmp_path):
    rows = scored(rows=4000, users=1500)
    exact = compute(predictions(rows), TASKS, bootstrap=400)
    spilled = compute(predictions(rows, exact_rows=1000, spill=tmp_path), TASKS, bootstrap=400)
    for task, metric in (("click", "auc"), ("click", "gauc_users"), ("spend", "gini")):
        a, b = exact.interval(task, metric).sd, spilled.interval(task, metric).sd
        assert b == pytest.approx(a, rel=0.15), metric  # 4 standard errors of a ratio of two sd


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(150), 4)
        rate = rng.beta(2, 2, 150)[user]  # rows of a user are alike: rows are not independent
        label = (rng.random(600) < rate)[:, None].astype(float)
        found = Predictions(["click"])
        found.update(
            np.arange(600),
            user,
            np.ones(600),
            np.full((600, 1), 0.4),
            label,
            np.ones((600, 1), bool),
        )
        value = compute(found, {"click": TASKS["click"]}, bootstrap=200, seed=seed)
        truth = -0.5 * (np.log(0.4) + np.log(0.6))
        around = value.interval("click", "logloss")
        covered += around.low <= truth <= around.high
    assert covered >= 51  # 57 expected; binomial 0.2 % quantile


def test_too_few_defined_replicates_give_no_interval():
    assert interval(np.full(100, np.nan), 0.5) is None
    assert interval(np.arange(19.0), 9.0) is None
    some = np.arange(100.0)
    some[:6] = np.nan
    assert interval(some, 50.0) is None


def test_the_interval_is_centred_on_the_value():
    found = interval(np.arange(101.0) + 7, 50.0)
    assert (found.low, found.high) == pytest.approx((2.5, 97.5))
