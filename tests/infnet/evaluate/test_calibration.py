import numpy as np
import pytest
from sklearn.metrics import log_loss

from infnet.evaluate.calibration import ece, logloss, ne
from tests.infnet.evaluate.scored_log import scored


@pytest.fixture
def rows():
    found = scored()
    return found.label[:, 0], found.prediction[:, 0], found.weight


def test_logloss_is_that_of_scikit_learn(rows):
    label, p, weight = rows
    clipped = np.clip(p.astype(np.float64), 2.0**-23, 1 - 2.0**-23)
    expected = log_loss(label, clipped, sample_weight=weight)
    assert logloss(label, p, weight) == pytest.approx(expected, rel=1e-12)


def test_a_certain_and_wrong_prediction_costs_sixteen_nats():
    assert logloss(np.array([1.0]), np.array([0.0])) == pytest.approx(23 * np.log(2), rel=1e-6)


def test_soft_labels_share_the_loss():
    p = np.array([0.3])
    expected = -(0.25 * np.log(0.3) + 0.75 * np.log(0.7))
    assert logloss(np.array([0.25]), p) == pytest.approx(expected, rel=1e-12)


def test_predicting_the_base_rate_has_normalised_entropy_one(rows):
    label = rows[0]
    assert ne(label, np.full(label.size, label.mean(dtype=float))) == pytest.approx(1, rel=1e-12)


def test_ne_of_one_label_is_refused():
    with pytest.raises(ValueError, match="base rate of 1"):
        ne(np.ones(3), np.full(3, 0.5))


def test_ece_is_the_loop_over_fifteen_bins(rows):
    label, p, weight = (column.astype(np.float64) for column in rows)
    total = 0.0
    for b in range(15):
        mine = (p * 15 >= b) & ((p * 15 < b + 1) | (b == 14))
        if weight[mine].sum() > 0:
            gap = np.average(label[mine], weights=weight[mine]) - np.average(
                p[mine], weights=weight[mine]
            )
            total += weight[mine].sum() / weight.sum() * abs(gap)
    assert ece(*rows) == pytest.approx(total, rel=1e-10)
