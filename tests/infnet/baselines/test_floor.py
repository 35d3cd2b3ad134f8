import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from infnet.baselines.floor import FloorConfig
from infnet.model.recommender import Recommender
from infnet.schema import DenseSlot
from infnet.tasks import BinaryTask
from rayrun.config import ConfigError, validate


def rates(*tasks: str) -> tuple[DenseSlot, ...]:
    return tuple(
        DenseSlot(name=f"{key}.logit", width=1, kind="statistic", task=task)
        for key, task in zip(("user", "item", "tag"), tasks, strict=False)
    )


def test_the_floor_starts_at_the_mean_of_the_tasks_own_rates(make_schema, make_batch):
    tasks = {"click": BinaryTask(label="c"), "like": BinaryTask(label="l")}
    schema = make_schema(dense=rates("click", "click", "like"), tasks=tasks)
    batch = make_batch(schema, 5)
    logits = Recommender(FloorConfig(), schema)(batch)
    torch.testing.assert_close(logits["click"][:, 0], batch.dense[:, :2].mean(1))
    torch.testing.assert_close(logits["like"][:, 0], batch.dense[:, 2])


def test_the_floor_sees_statistics_only(make_schema, make_batch):
    schema = make_schema()
    model, batch = Recommender(FloorConfig(), schema), make_batch(schema, 5)
    before = model(batch)["click"]
    batch.dense[:, :8] += 1  # age and week
    assert torch.equal(model(batch)["click"], before)
    assert not list(model.tables.parameters())


def test_the_floor_is_the_logistic_regression_of_scikit_learn(make_schema, make_batch):
    schema = make_schema(dense=rates("click", "click"), tasks={"click": BinaryTask(label="c")})
    model, batch = Recommender(FloorConfig(gain=1), schema).double(), make_batch(schema, 400)
    x, y = batch.dense.double(), batch.labels[:, 0].double()
    inputs = model.tables(batch)._replace(dense=x)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-12, tolerance_change=0
    )

    def closure():
        optimizer.zero_grad()
        loss = schema.tasks["click"].loss(model.network(inputs)["click"], y).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    peer = LogisticRegression(C=np.inf, tol=1e-10).fit(x.numpy(), y.numpy())
    ours = model.network(inputs)["click"].detach().numpy()[:, 0]
    np.testing.assert_allclose(ours, peer.decision_function(x.numpy()), atol=1e-4)


def test_a_schema_without_statistics_is_told_which_features_to_add(make_schema):
    with pytest.raises(
        ConfigError, match=r"at least one feature of type statistic, found none; add"
    ):
        Recommender(FloorConfig(), make_schema(dense=()))


def test_a_gain_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="gain must be above 0, found 0"):
        validate(FloorConfig, {"gain": 0}, where="model")


def test_a_task_reads_its_own_rates_unless_all_are_asked_for(make_schema, make_batch):
    tasks = {"click": BinaryTask(label="c"), "like": BinaryTask(label="l")}
    schema = make_schema(dense=rates("click", "click", "like"), tasks=tasks)
    batch = make_batch(schema, 5)
    changed = make_batch(schema, 5)
    changed.dense.copy_(batch.dense)
    changed.dense[:, 2] += 1
    for statistics, same in (("own", True), ("all", False)):
        model = Recommender(FloorConfig(statistics=statistics), schema)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        assert torch.equal(model(changed)["click"], model(batch)["click"]) is same
        assert not torch.equal(model(changed)["like"], model(batch)["like"])
