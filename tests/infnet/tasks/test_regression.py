import math

import pytest
import torch

from infnet.tasks import RegressionTask
from infnet.tasks.regression import Huber, Squared, smooth, unsmooth
from rayrun.config import ConfigError, validate


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_huber_has_the_reference_values():
    loss = Huber()(column(0.5, 1, 2, -3))  # spec/infnet.md §7
    torch.testing.assert_close(loss, column(0.125, 0.5, 1.5, 2.5), rtol=0, atol=1e-15)


def test_the_smoothed_target_is_the_amount_up_to_100_and_then_its_logarithm():
    y = column(-3, 0, 99.5, 100, 101, 1e6)
    expected = column(-3, 0, 99.5, 100, 100 + math.log(2), 100 + math.log(1e6 - 99))
    torch.testing.assert_close(smooth(y), expected)
    torch.testing.assert_close(unsmooth(smooth(y)), y)


def test_no_prediction_of_the_smoothed_target_is_infinite():
    assert unsmooth(column(1e9)).item() == pytest.approx(99 + math.exp(20))


def test_smoothing_has_finite_gradients_everywhere():
    for function in (smooth, unsmooth):
        y = column(-1e9, 0, 100, 1e9).requires_grad_()
        function(y).sum().backward()
        assert y.grad.isfinite().all()


@pytest.mark.parametrize("target", ["amount", "smoothed"])
def test_the_loss_is_zero_exactly_where_the_prediction_is_the_label(target):
    task = RegressionTask(label="y", target=target, scale=20.0, objective=Squared())
    logits = column(0.5, 4, 5.1)[:, None]
    labels = task.predict(logits)
    torch.testing.assert_close(
        task.loss(logits, labels), torch.zeros(3).double(), rtol=0, atol=1e-20
    )


def test_the_loss_is_in_units_of_scale():
    task = RegressionTask(label="y", scale=10.0, objective=Squared())
    assert task.loss(column(3)[:, None], column(50)).item() == (3 - 5) ** 2


def test_a_non_negative_amount_is_never_shown_below_zero_but_still_learnt():
    task = RegressionTask(label="y", non_negative=True)
    x = column(-2)[:, None].requires_grad_()
    assert task.predict(x).item() == 0
    task.loss(x, column(0)).sum().backward()
    assert x.grad.item() == -1
    assert task.label_range[0] == 0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"scale": 0}, "scale must be above 0, found 0"),
        ({"objective": {"type": "huber", "delta": 0}}, "delta must be above 0, found 0"),
    ],
)
def test_impossible_settings_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        validate(RegressionTask, {"label": "y", **raw}, where="tasks.y")
