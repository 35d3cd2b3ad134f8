"""What every task type inherits."""

from typing import get_args

import pytest
import torch

from infnet.tasks import Label, Task, observed_losses
from rayrun.config import validate

REQUIRED = {"ordinal": {"levels": 4}, "conditional": {"given": "click"}}
MEMBERS = {member.model_fields["type"].default: member for member in get_args(get_args(Task)[0])}
KNOWN_METRICS = {
    *("auc", "gauc_impressions", "gauc_users", "gauc_positives", "logloss", "ne", "ece"),
    *("mae", "rmse", "r2", "gini"),
}


@pytest.fixture(params=MEMBERS.items(), ids=MEMBERS)
def task(request):
    name, member = request.param
    return validate(member, {"type": name, "label": "y", **REQUIRED.get(name, {})}, where="tasks.y")


def test_it_survives_being_written_and_read(task):
    assert validate(type(task), task.to_dict(), where="tasks.y") == task


def test_its_metrics_are_names_of_result_json(task):
    assert task.metrics
    assert set(task.metrics) <= KNOWN_METRICS


def test_loss_and_prediction_are_one_number_a_row(task):
    logits = torch.randn(5, task.num_logits)
    assert task.loss(logits, torch.ones(5)).shape == (5,)
    assert task.predict(logits).shape == (5,)


def test_a_row_alone_gets_what_it_gets_in_company(task):
    logits, labels = torch.randn(5, task.num_logits), torch.tensor([0.0, 1, 1, 0, 1])
    together = task.loss(logits, labels)
    alone = torch.cat([task.loss(logits[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_predictions_stay_within_the_range_of_labels(task):
    low, high = task.label_range
    predictions = task.predict(torch.randn(100, task.num_logits) * 10)
    assert predictions.ge(low).all()
    assert predictions.le(high).all()


def test_an_unobserved_row_gives_no_loss_and_no_gradient(task):
    logits = torch.randn(3, task.num_logits, requires_grad=True)
    observed = torch.tensor([True, False, True])
    losses = task.loss(logits, torch.tensor([1.0, 0.0, 1.0]))
    observed_losses(losses, observed, torch.ones(3)).backward()
    assert logits.grad[1].eq(0).all()
    assert logits.grad[0].any()


def test_a_loss_that_is_not_finite_at_an_unobserved_row_does_not_leak():
    losses = torch.tensor([1.0, torch.nan, 3.0])
    total = observed_losses(losses, torch.tensor([True, False, True]), torch.tensor([1.0, 1, 2]))
    assert total.item() == 7


def test_a_label_may_be_a_column_or_a_description():
    binary = MEMBERS["binary"]
    assert binary(label="click").source == Label(column="click")
    assert binary(label=Label(column="rating", above=3)).source.above == 3
