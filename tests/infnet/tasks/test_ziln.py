import math

import pytest
import torch
from scipy import stats

from infnet.tasks import ZilnTask
from rayrun.config import ConfigError, validate

TASK = ZilnTask(label="y")


def both(y: float, logits: tuple[float, ...]) -> tuple[float, float]:
    x = torch.tensor([logits], dtype=torch.float64)
    return TASK.loss(x, torch.tensor([y], dtype=torch.float64)).item(), TASK.predict(x).item()


# spec/infnet.md §7: google/lifetime_value in float64, to nine digits.
@pytest.mark.parametrize(
    ("y", "logits", "loss", "prediction"),
    [
        (0, (0.1, 0.2, 0.3), 0.744396660, 0.923637853),
        (1.5, (0.4, 0.5, 0.6), 1.878372591, 1.690755332),
        (100, (0, 0, 0), 27.921155514, 0.635768565),
        (0.001, (0, 0, 0), 43.996245718, 0.635768565),
        (0, (0, 0, 0), 0.693147181, 0.635768565),
        (1, (0, 0, -40), -6.446962112, 0.5),
    ],
)
def test_ziln_has_the_reference_values(y, logits, loss, prediction):
    assert both(y, logits) == (
        pytest.approx(loss, abs=1e-8),
        pytest.approx(prediction, abs=1e-8),
    )


def test_ziln_is_the_likelihood_of_scipys_lognormal():
    for y in (0.3, 7.0):
        p, mu, spread = 0.4, 0.9, -0.2
        sigma = math.log1p(math.exp(spread))
        density = stats.lognorm.logpdf(y, s=sigma, scale=math.exp(mu))
        expected = math.log1p(math.exp(-p)) - density
        assert both(y, (p, mu, spread))[0] == pytest.approx(expected, rel=1e-12)


def test_one_odd_row_cannot_be_infinite():
    loss, prediction = both(1e30, (1e4, 1e4, 1e4))
    assert math.isfinite(loss)
    assert prediction == pytest.approx(math.exp(20))


def test_the_amount_has_no_gradient_where_nothing_happened():
    x = torch.randn(4, 3, requires_grad=True)
    TASK.loss(x, torch.zeros(4)).sum().backward()
    assert x.grad[:, 1:].eq(0).all()
    assert x.grad.isfinite().all()


def test_ziln_passes_gradcheck():
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 0.5, 20.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: TASK.loss(x, y), x)
    assert torch.autograd.gradcheck(TASK.predict, x)


def test_impossible_caps_are_refused():
    with pytest.raises(ConfigError, match="max_sigma and max_exponent must be above 0, found 0"):
        validate(ZilnTask, {"label": "y", "max_sigma": 0}, where="tasks.y")
