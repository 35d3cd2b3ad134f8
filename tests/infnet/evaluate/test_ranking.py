import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from infnet.evaluate.ranking import auc, gauc, ndcg
from tests.infnet.evaluate.scored_log import scored


def one_task(weighted=True, seed=0):
    rows = scored(weighted=weighted, seed=seed)
    return rows.user, rows.label[:, 0], rows.prediction[:, 0], rows.weight


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_that_of_scikit_learn_with_ties_and_weights(seed):
    _, label, prediction, weight = one_task(seed=seed)
    expected = roc_auc_score(label, prediction, sample_weight=weight)
    assert auc(label, prediction, weight) == pytest.approx(expected, rel=1e-12)
    assert auc(label, prediction) == pytest.approx(roc_auc_score(label, prediction), rel=1e-12)


def test_a_label_of_one_half_is_half_a_positive_and_half_a_negative():
    label, prediction = np.array([1.0, 0.5, 0.0]), np.array([0.9, 0.5, 0.1])
    split = auc(np.array([1, 1, 0, 0]), np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 0.5, 0.5, 1]))
    assert auc(label, prediction) == pytest.approx(split, rel=1e-15)


def test_auc_of_one_label_is_refused():
    with pytest.raises(ValueError, match="found 3 positive and 0 negative rows"):
        auc(np.ones(3), np.arange(3.0))


@pytest.mark.parametrize("by", ["impressions", "users", "positives"])
def test_gauc_is_the_loop_over_users(by):
    user, label, prediction, weight = one_task()
    values, shares = [], []
    for one in np.unique(user):
        mine = (user == one) & (weight > 0)
        if len(np.unique(label[mine])) == 2:
            values.append(roc_auc_score(label[mine], prediction[mine], sample_weight=weight[mine]))
            w = weight[mine].astype(np.float64)
            shares.append({"impressions": w.sum(), "users": 1, "positives": w @ label[mine]}[by])
    assert 1 < len(values) < len(np.unique(user))
    expected = np.average(values, weights=shares)
    assert gauc(user, label, prediction, weight, by=by) == pytest.approx(expected, rel=1e-12)


def test_gauc_without_a_mixed_user_is_refused():
    with pytest.raises(ValueError, match="found none among 2 users"):
        gauc(np.array([1, 1, 2]), np.array([1, 1, 0]), np.arange(3.0))


@pytest.mark.parametrize("k", [1, 5, 50])
def test_ndcg_is_scikit_learns_mean_over_tied_orders(k):
    user, label, prediction, _ = one_task()
    expected = []
    for one in np.unique(user):
        mine = user == one
        if mine.sum() > 1:
            expected.append(ndcg_score([label[mine]], [prediction[mine]], k=k))
        else:
            expected.append(label[mine][0])
    assert 0 in expected  # a user without positives counts 0
    assert ndcg(user, label, prediction, k=k) == pytest.approx(np.mean(expected), rel=1e-12)


def test_ndcg_takes_graded_labels():
    rng = np.random.default_rng(0)
    gain, score = rng.integers(0, 4, 30).astype(float), rng.integers(0, 9, 30).astype(float)
    expected = ndcg_score([gain], [score], k=5)
    assert ndcg(np.zeros(30, int), gain, score, k=5) == pytest.approx(expected, rel=1e-12)
