"""Concentration ratios with their intervals."""

import pytest
import torch

from layer_select.importance.agreement import agreement, concentration
from layer_select.scores import MethodScores, Scores


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_ratio_is_the_top_quarter_over_the_bottom_quarter_and_its_interval_covers():
    truth = torch.linspace(1, 2, 8, dtype=torch.float64)
    expected = float(truth[-2:].mean() / truth[:2].mean())
    covered = 0
    for seed in range(60):
        samples = truth + 0.5 * drawn(40, 8, seed=seed)
        told = concentration(samples.mean(0), samples.std(0), samples, replicates=200, seed=seed)
        assert told["by"] == "bootstrap over samples"
        covered += told["low"] <= expected <= told["high"]
    assert 49 <= covered <= 60  # 95 % of 60 is 57; fewer than 49 has a chance below 1e-4


def test_scores_without_samples_have_an_interval_by_their_errors():
    scores = torch.tensor([1.0, 5.0, 5.0, 3.0], dtype=torch.float64)
    told = concentration(scores, 0.01 * scores, None, replicates=4000, seed=0)
    assert told["ratio"] == pytest.approx(3.0)
    # A ratio of two means with 1 % each has an error of about √2 %.
    assert told["high"] - told["low"] == pytest.approx(2 * 1.96 * 3 * 0.01 * 2**0.5, rel=0.1)


@pytest.mark.parametrize(
    "scores", [[0.0, 1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]]
)
def test_a_ratio_without_meaning_is_not_told(scores):
    told = concentration(
        torch.tensor(scores, dtype=torch.float64), torch.ones(4), None, replicates=10, seed=0
    )
    assert told == {"ratio": None, "low": None, "high": None, "by": None}


def test_agreement_is_spearmans():
    rows = {"up": (1.0, 2.0, 3.0), "down": (9.0, 4.0, 1.0), "flat": (1.0, 1.0, 1.0)}
    methods = {
        name: MethodScores(type="random", scores=row, errors=(0.0,) * 3, seconds=0.0)
        for name, row in rows.items()
    }
    scores = Scores(model="m", task="t", num_layers=3, samples=1, methods=methods, loss=1.0)
    found = agreement(scores)
    assert found["up"] == {"up": pytest.approx(1.0), "down": pytest.approx(-1.0), "flat": None}
