import numpy as np
import pytest

from infnet.evaluate.correlation import CorrelationSums


def brute(x, observed, weight, s, t):
    both = observed[:, s] & observed[:, t]
    a, b, w = x[both, s], x[both, t], weight[both]
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    return (w * a) @ b / np.sqrt(((w * a) @ a) * ((w * b) @ b))


def test_merged_sums_give_the_pairwise_weighted_pearson_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(1000, 1, (200, 3))
    x[:, 1] += x[:, 0]
    observed, weight = rng.random((200, 3)) < 0.7, rng.random(200)
    shift = np.full(3, 1000.0)
    parts = [
        CorrelationSums.of(x[i], observed[i], weight[i], shift) for i in np.split(np.arange(200), 4)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]).matrix()
    for s in range(3):
        for t in range(3):
            assert merged[s][t] == pytest.approx(brute(x, observed, weight, s, t), abs=1e-10)


def test_a_constant_task_or_a_pair_without_rows_has_no_correlation():
    x = np.array([[1.0, 5.0], [2.0, 5.0]])
    constant = CorrelationSums.of(x, np.ones((2, 2), bool), np.ones(2), np.zeros(2)).matrix()
    assert constant[0] == [pytest.approx(1), None]
    apart = CorrelationSums.of(x, np.eye(2, dtype=bool), np.ones(2), np.zeros(2)).matrix()
    assert apart[0][1] is None
