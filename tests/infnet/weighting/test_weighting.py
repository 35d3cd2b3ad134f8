import math

import pytest
import torch
from pydantic import TypeAdapter

from infnet.tasks import BinaryTask, RegressionTask
from infnet.weighting import FixedWeighting, UncertaintyWeighting, Weighting

TASKS = {"click": BinaryTask(label="c", weight=2), "watch": RegressionTask(label="w", weight=3)}


def losses() -> dict[str, torch.Tensor]:
    return {"click": torch.tensor(0.7), "watch": torch.tensor(5.0)}


def test_fixed_weights_are_the_tasks_own():
    assert FixedWeighting().build(TASKS)(losses()).item() == pytest.approx(2 * 0.7 + 3 * 5)


def test_uncertainty_starts_at_the_fixed_sum_with_half_of_regressions():
    assert UncertaintyWeighting().build(TASKS)(losses()).item() == pytest.approx(2 * 0.7 + 1.5 * 5)


def test_uncertainty_is_the_formula():
    weighting = UncertaintyWeighting().build(TASKS)
    torch.nn.init.constant_(weighting.log_variance, 0.3)
    expected = 2 * (0.7 * math.exp(-0.3) + 0.3) + 1.5 * (5 * math.exp(-0.3) + 0.3)
    assert weighting(losses()).item() == pytest.approx(expected)


def test_uncertainty_settles_where_each_task_counts_the_inverse_of_its_loss():
    weighting = UncertaintyWeighting().build(TASKS)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        weighting(losses()).backward()
        optimizer.step()
    # d/ds (L e^{−s} + s) = 0 at s = ln L
    expected = torch.tensor([math.log(0.7), math.log(5)])
    torch.testing.assert_close(weighting.log_variance.data, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("config", [FixedWeighting(), UncertaintyWeighting()])
def test_parts_of_a_step_add_up_to_the_step(config):
    weighting = config.build(TASKS)
    if isinstance(config, UncertaintyWeighting):
        torch.nn.init.constant_(weighting.log_variance, 0.3)
    quarter = {name: loss / 4 for name, loss in losses().items()}
    parts = sum(weighting(quarter, share=0.25) for _ in range(4))
    torch.testing.assert_close(parts, weighting(losses()))


def test_the_union_knows_its_members_by_type():
    adapter = TypeAdapter(Weighting)
    assert adapter.validate_python({"type": "fixed"}) == FixedWeighting()
    assert adapter.validate_python({"type": "uncertainty"}) == UncertaintyWeighting()
