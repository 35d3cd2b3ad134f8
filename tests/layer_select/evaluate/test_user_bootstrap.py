"""One bootstrap for every table: users are drawn, not samples, and comparisons are paired."""

import numpy as np
import pytest
import torch

from layer_select.evaluate import bootstrap as module
from layer_select.evaluate.bootstrap import Bootstrap, around


def test_users_are_drawn_with_all_their_samples():
    rng = np.random.default_rng(0)
    of_users = torch.from_numpy(rng.normal(size=40))
    once = Bootstrap(40, 2000, seed=1).interval(of_users)
    order = torch.from_numpy(rng.permutation(1000))
    users = np.repeat(np.arange(40) * 7 + 3, 25)[order]
    many = Bootstrap(users, 2000, seed=1).interval(of_users.repeat_interleave(25)[order])
    assert many == pytest.approx(once, abs=1e-12)
    half_width = 1.96 * float(of_users.std(correction=0)) / 40**0.5
    assert (once["high"] - once["low"]) / 2 == pytest.approx(half_width, rel=0.1)


def test_a_mean_over_drawn_users_weighs_each_by_its_samples():
    users = np.array([4, 4, 4, 9])
    values = torch.tensor([[1.0], [2.0], [3.0], [10.0]], dtype=torch.float64)
    found = set(Bootstrap(users, 200, seed=0).means(values)[:, 0].tolist())
    assert found == {2.0, 4.0, 10.0}  # user 4 twice, both, user 9 twice: (6 + 10) / 4


def test_equal_models_differ_by_nothing_and_retain_everything():
    values = torch.rand(50, 1, dtype=torch.float64)
    both = Bootstrap(50, 300, seed=2).means(torch.cat([values, values], dim=1))
    assert around(0.0, both[:, 0] - both[:, 1]) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert around(1.0, both[:, 0] / both[:, 1]) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert around(1.0, both[:, 0] / 0.0)["low"] is None


def test_replicates_do_not_depend_on_how_many_are_drawn_together(monkeypatch):
    values = torch.rand(30, 2, dtype=torch.float64)
    expected = Bootstrap(30, 64, seed=3).means(values)
    monkeypatch.setattr(module, "USERS_AT_ONCE", 30 * 7)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    torch.testing.assert_close(Bootstrap(30, 64, seed=3).means(values), expected)
    assert Bootstrap(30, 0, seed=3).interval(values[:, 0])["low"] is None
