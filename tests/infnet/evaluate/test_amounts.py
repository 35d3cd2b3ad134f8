import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from infnet.evaluate.amounts import decile_mape, gini, mae, r2, rmse
from tests.infnet.evaluate.scored_log import scored


@pytest.fixture
def rows():
    found = scored()
    return tuple(
        c.astype(np.float64) for c in (found.label[:, 2], found.prediction[:, 2], found.weight)
    )


def test_errors_are_those_of_scikit_learn(rows):
    y, p, w = rows
    assert mae(y, p, w) == pytest.approx(mean_absolute_error(y, p, sample_weight=w), rel=1e-12)
    expected = mean_squared_error(y, p, sample_weight=w) ** 0.5
    assert rmse(y, p, w) == pytest.approx(expected, rel=1e-12)
    assert r2(y, p, w) == pytest.approx(r2_score(y, p, sample_weight=w), rel=1e-12)


def test_r2_of_equal_labels_is_refused():
    with pytest.raises(ValueError, match="3 rows of one value"):
        r2(np.ones(3), np.arange(3.0))


def gini_of_lifetime_value(y, p):
    """google/lifetime_value, metrics.py: 2 · mean of the cumulative share − 1, over that of the label."""

    def raw(score):
        return 2 * (np.cumsum(y[np.argsort(-score, kind="stable")]) / y.sum()).sum() / y.size - 1

    return raw(p) / raw(y)


def test_gini_without_ties_is_that_of_lifetime_value():
    rng = np.random.default_rng(0)
    y, p = rng.lognormal(0, 1, 200) * (rng.random(200) < 0.4), rng.permutation(np.arange(200.0))
    assert gini(y, p) == pytest.approx(gini_of_lifetime_value(y, p), rel=1e-12)


def test_tied_predictions_count_as_the_mean_over_their_orders():
    rng = np.random.default_rng(0)
    y, p = rng.lognormal(0, 1, 30), rng.integers(0, 5, 30).astype(float)
    drawn = []
    for _ in range(4000):
        order = rng.permutation(30)
        drawn.append(gini_of_lifetime_value(y[order], p[order]))
    error = np.std(drawn) / len(drawn) ** 0.5
    assert abs(gini(y, p) - np.mean(drawn)) < 4 * error


def test_an_integer_weight_counts_as_so_many_rows():
    rng = np.random.default_rng(0)
    y, p, w = rng.lognormal(0, 1, 30), rng.random(30), rng.integers(1, 4, 30)
    repeated = gini(np.repeat(y, w), np.repeat(p, w))
    assert gini(y, p, w.astype(float)) == pytest.approx(repeated, rel=1e-12)


@pytest.mark.parametrize("label", [[1.0, 1.0], [-1.0, 2.0], []])
def test_gini_refuses_negative_or_equal_labels(label):
    with pytest.raises(ValueError, match="gini needs labels that differ and are 0 or more"):
        gini(np.array(label), np.zeros(len(label)))


def test_decile_mape_compares_the_means_of_ten_groups():
    y = np.arange(1.0, 101.0)
    p = y * np.where(y <= 50, 1.1, 0.8)
    groups = np.argsort(p).reshape(10, 10)
    expected = np.mean([abs(p[g].mean() - y[g].mean()) / y[g].mean() for g in groups])
    assert decile_mape(y, p) == pytest.approx(expected, rel=1e-12)


def test_decile_mape_needs_amounts_in_each_decile():
    with pytest.raises(ValueError, match="found 10 deciles without"):
        decile_mape(np.zeros(100), np.arange(100.0))
