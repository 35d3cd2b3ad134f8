import math

import pytest
import torch

from infnet.tasks import BinaryTask
from infnet.tasks.binary import CrossEntropy, Focal
from rayrun.config import ConfigError, validate


def logit(p: float) -> torch.Tensor:
    return torch.tensor([[math.log(p / (1 - p))]], dtype=torch.float64)


def label(y: float) -> torch.Tensor:
    return torch.tensor([y], dtype=torch.float64)


# spec/infnet.md §7, computed with numpy in float64 to nine digits.
@pytest.mark.parametrize(
    ("p", "negative", "positive"),
    [
        (0.1, 0.000790204, 0.466273481),
        (0.5, 0.129965096, 0.043321699),
        (0.9, 1.398820444, 0.000263401),
    ],
)
def test_focal_loss_has_the_reference_values(p, negative, positive):
    task = BinaryTask(label="y", objective=Focal())
    assert task.loss(logit(p), label(0)).item() == pytest.approx(negative, abs=5e-10)
    assert task.loss(logit(p), label(1)).item() == pytest.approx(positive, abs=5e-10)


def test_focal_loss_without_focus_is_half_the_cross_entropy():
    x, y = torch.randn(9, 1).double(), torch.rand(9).double()
    focal = BinaryTask(label="y", objective=Focal(alpha=0.5, gamma=0))
    torch.testing.assert_close(focal.loss(x, y), BinaryTask(label="y").loss(x, y) / 2)


def test_cross_entropy_is_the_formula_also_with_a_positive_weight():
    task = BinaryTask(label="y", objective=CrossEntropy(positive_weight=3))
    for p in (0.1, 0.8):
        for y in (0.0, 0.25, 1.0):
            expected = -3 * y * math.log(p) - (1 - y) * math.log(1 - p)
            assert task.loss(logit(p), label(y)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", [CrossEntropy(positive_weight=2), Focal()])
def test_extreme_logits_stay_finite_forward_and_backward(objective):
    x = torch.tensor([[-1e4], [1e4], [-1e4], [1e4]], requires_grad=True)
    losses = BinaryTask(label="y", objective=objective).loss(x, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_prediction_is_a_probability():
    assert BinaryTask(label="y").predict(logit(0.3)).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"type": "focal", "alpha": 1.0}, r"alpha in \(0, 1\) and gamma at least 0, found 1.0"),
        (
            {"type": "cross_entropy", "positive_weight": 0},
            "positive_weight must be above 0, found 0",
        ),
        ({"type": "hinge"}, "'cross_entropy', 'focal'"),
    ],
)
def test_impossible_objectives_are_refused(objective, message):
    with pytest.raises(ConfigError, match=message):
        validate(BinaryTask, {"label": "y", "objective": objective}, where="tasks.y")


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="weight must be above 0, found 0"):
        validate(BinaryTask, {"label": "y", "weight": 0}, where="tasks.y")
