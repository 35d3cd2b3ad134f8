import pytest
import torch
import torch.nn.functional as F

from infnet.tasks import OrdinalTask
from rayrun.config import ConfigError, validate

TASK = OrdinalTask(label="stars", levels=5)


def logits() -> torch.Tensor:
    return torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_questions_never_contradict_each_other():
    at_least = TASK._ordered(logits()).sigmoid()
    assert (at_least.diff(dim=1) < 0).all()


def test_the_loss_is_the_sum_of_the_questions_cross_entropies():
    x = logits()
    for level in range(5):
        bounds = [x[:, 0]]
        for j in range(1, 4):
            bounds.append(bounds[-1] - F.softplus(x[:, j]))
        expected = sum(
            -(p.log() if level >= j else (1 - p).log())
            for j, p in enumerate((b.sigmoid() for b in bounds), start=1)
        )
        torch.testing.assert_close(TASK.loss(x, torch.full((7,), float(level)).double()), expected)


def test_the_prediction_is_the_expected_level():
    x = logits()
    at_least = torch.cat([torch.ones(7, 1), TASK._ordered(x).sigmoid(), torch.zeros(7, 1)], 1)
    of_level = -at_least.diff(dim=1)
    torch.testing.assert_close(TASK.predict(x), of_level @ torch.arange(5.0).double())
    assert TASK.label_range == (0, 4)


def test_ordinal_passes_gradcheck():
    y = torch.tensor([0.0, 1, 2, 3, 4, 4, 0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: TASK.loss(x, y), logits().requires_grad_())


def test_one_level_is_refused():
    with pytest.raises(ConfigError, match="levels must be at least 2, found 1"):
        validate(OrdinalTask, {"label": "stars", "levels": 1}, where="tasks.stars")
