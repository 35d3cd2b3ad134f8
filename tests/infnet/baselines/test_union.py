"""What every model of the union inherits: the checks a new baseline has to pass."""

import inspect
from typing import get_args

import pytest
import torch
from torch import nn

import infnet.baselines.blocks.cross as cross
import infnet.baselines.blocks.din as din
import infnet.baselines.blocks.ple as ple
import infnet.model as model_room
from infnet.baselines import Model
from infnet.baselines.online_stack import FullCross, OnlineStackConfig
from infnet.batch import Batch
from infnet.model import block, flow, heads, layers, pgu, proxies, recommender, tables, tokens
from infnet.model.infnet import INFNetConfig, PooledTaskProxies
from infnet.model.recommender import Recommender
from infnet.schema import Schema
from infnet.tasks import observed_losses

MEMBERS = [member for member in get_args(get_args(Model)[0])]
CONFIGS = {
    **{member().type: member() for member in MEMBERS},
    "infnet, every option": INFNetConfig(
        num_heads=2,
        num_sequence_proxies=2,
        task_proxies=PooledTaskProxies(),
        layer_norm=True,
        pgu_source="pre",
    ),
    "online_stack, every option": OnlineStackConfig(
        cross=FullCross(), attention_softmax=True, target_fields=("author",)
    ),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request):
    return request.param


@pytest.fixture
def schema(make_schema):
    return make_schema()


@pytest.fixture
def model(config, schema):
    torch.manual_seed(0)
    return Recommender(config, schema).eval()


def loss_of(model: Recommender, schema: Schema, batch: Batch) -> torch.Tensor:
    logits = model(batch)
    parts = [
        observed_losses(
            task.loss(logits[name], batch.labels[:, i]), batch.observed[:, i], batch.weight
        )
        for i, (name, task) in enumerate(schema.tasks.items())
    ]
    return sum(parts) / len(batch)


def test_logits_have_the_width_each_task_asks_for(model, schema, make_batch):
    shapes = {name: tuple(x.shape) for name, x in model(make_batch(schema, 1)).items()}
    assert shapes == {name: (1, width) for name, width in schema.outputs.items()}


def test_predictions_lie_in_the_range_of_their_task(model, schema, make_batch):
    predictions = model.predict(make_batch(schema, 8))
    for name, task in schema.tasks.items():
        low, high = task.label_range
        assert predictions[name].shape == (8,)
        assert predictions[name].ge(low).all()
        assert predictions[name].le(high).all()


def test_padding_never_reaches_the_logits(model, schema, make_batch, pad):
    batch = make_batch(schema, 8)
    before, after = model(batch), model(pad(batch, by=5))
    for task in schema.tasks:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-6)


def test_what_stands_at_padding_never_reaches_the_logits(model, schema, make_batch):
    inputs = model.tables(make_batch(schema, 8))
    marked = inputs._replace(
        sequences={
            name: events + 1e3 * ~inputs.valid[name][..., None]
            for name, events in inputs.sequences.items()
        }
    )
    before, after = model.network(inputs), model.network(marked)
    for task in schema.tasks:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-6)


def test_permuting_the_batch_permutes_the_logits(model, schema, make_batch):
    batch, order = make_batch(schema, 8), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    before, after = model(batch), model(batch[order])
    for task in schema.tasks:
        torch.testing.assert_close(after[task], before[task][order], rtol=0, atol=1e-6)


def test_rows_without_any_history_are_finite_forward_and_backward(model, schema, make_batch):
    batch = make_batch(schema, 4, empty=True)
    loss_of(model, schema, batch).backward()
    assert all(x.isfinite().all() for x in model(batch).values())
    gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


def test_histories_padded_to_no_column_at_all_are_rows_without_history(model, schema, make_batch):
    batch = make_batch(schema, 4, empty=True)
    narrow = {
        name: type(s)(s.ids[:, :0], s.ages[:, :0], s.lengths) for name, s in batch.sequences.items()
    }
    before, after = model(batch), model(Batch(**{**vars(batch), "sequences": narrow}))
    for task in schema.tasks:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-6)


def test_a_task_that_is_observed_nowhere_gives_no_gradient(model, schema, make_batch):
    batch = make_batch(schema, 8)
    batch.observed[:, 3] = False
    loss_of(model, schema, batch).backward()
    towers = dict(zip(schema.tasks, model.network.heads.towers, strict=True))
    counts = {
        name: sum(int(p.grad.count_nonzero()) for p in tower.parameters())
        for name, tower in towers.items()
    }
    assert counts["watch"] == 0
    assert counts["click"] > 0


def test_a_batch_without_any_label_gives_no_gradient(model, schema, make_batch):
    batch = make_batch(schema, 8)
    batch.observed[:] = False
    loss_of(model, schema, batch).backward()
    gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    assert not any(g.count_nonzero() for g in gradients)


def test_the_network_has_no_parameter_without_a_gradient(model, schema, make_batch):
    loss_of(model, schema, make_batch(schema, 16)).backward()
    assert [n for n, p in model.network.named_parameters() if p.grad is None] == []


# A linear model of two numbers cannot; test_floor compares its optimum with scikit-learn's.
@pytest.mark.parametrize("config", [c for c in CONFIGS.values() if c.type != "floor"])
def test_it_overfits_32_rows(config, schema, make_batch):
    torch.manual_seed(0)
    model, batch = Recommender(config, schema), make_batch(schema, 32)
    batch.labels[:, 1] *= batch.labels[:, 0]  # a like needs a click
    dense = torch.optim.Adam(model.network.parameters(), lr=3e-3)
    sparse = torch.optim.SparseAdam(list(model.tables.parameters()), lr=3e-2)
    for _ in range(150):
        dense.zero_grad()
        sparse.zero_grad()
        loss_of(model, schema, batch).backward()
        dense.step()
        sparse.step()
    predicted = model.predict(batch)
    for column, name in ((0, "click"), (1, "like")):
        assert torch.equal(predicted[name].round(), batch.labels[:, column])


def test_it_can_be_built_without_memory(config, schema):
    with torch.device("meta"):
        built = Recommender(config, schema)
    assert all(p.is_meta for p in built.parameters())


def test_it_exports_to_plain_operators(model, schema, make_batch):
    """torch.export, and none of the operators that ONNX turns into loops or that depend on values."""
    inputs = model.tables(make_batch(schema, 4))
    inputs = torch.utils._pytree.tree_map(torch.Tensor.detach, inputs)
    exported = torch.export.export(model.network, (inputs,))
    used = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    refused = ("aten.embedding_bag", "aten._embedding_bag", "aten.nonzero", "aten.item")
    assert [op for op in used if op.startswith("aten.")]
    assert not [op for op in used if op.startswith(refused)]
    for name, logits in exported.module()(inputs).items():
        torch.testing.assert_close(logits, model.network(inputs)[name], rtol=0, atol=1e-6)


def test_the_state_dict_restores_it_exactly(config, model, schema, make_batch):
    batch = make_batch(schema, 4)
    torch.manual_seed(1)
    other = Recommender(config, schema).eval()
    other.load_state_dict(model.state_dict())
    for name, logits in model(batch).items():
        assert torch.equal(logits, other(batch)[name])


@pytest.mark.parametrize(
    "module",
    [block, flow, heads, layers, pgu, proxies, recommender, tables, tokens, cross, din, ple],
    ids=lambda module: module.__name__.split(".")[-1],
)
def test_no_layer_takes_more_than_six_arguments(module):
    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, nn.Module) and c.__module__ == module.__name__
    ]
    assert classes
    wide = {
        c.__name__: list(inspect.signature(c.__init__).parameters)[1:]
        for c in classes
        if len(inspect.signature(c.__init__).parameters) > 7
    }
    assert wide == {}


def test_the_model_room_says_what_to_read_first():
    assert "infnet.py" in (model_room.__doc__ or "")
