"""The loss of a step adds up over any cut of the batch; arithmetic, schedule, dense optimizers, weighting."""

import itertools

import pytest
import torch
from torch import nn

from infnet.config import Optimizer, Train
from infnet.data.loader import TrainLoader
from infnet.train.arithmetic import batch_arithmetic
from infnet.train.objective import Objective
from infnet.train.optimizer import dense_optimizer, schedule_factor
from infnet.train.step import observed_weights, task_losses
from infnet.weighting import FixedWeighting, UncertaintyWeighting
from rayrun.config import ConfigError
from rayrun.ray.precision import check_bf16
from tests.infnet.train import written_dataset as written


@pytest.fixture(scope="module")
def batch(dataset):
    loader = TrainLoader(
        dataset,
        written.schema(),
        batch_size=32,
        rank=0,
        world_size=1,
        lanes=2,
        shuffle_rows=64,
        seed=0,
    )
    return next(iter(loader.epoch(0)))


def logits_of(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(len(batch), 1, generator=generator, dtype=torch.double)
        for name in written.schema().tasks
    }


CUTS = {
    "one": [0, 32],
    "uneven": [0, 5, 6, 32],
    "with an empty part": [0, 16, 16, 32],
    "rows": list(range(33)),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_losses_of_parts_add_up_to_the_loss_of_the_whole(batch, cut):
    tasks, logits = written.schema().tasks, logits_of(batch)
    weights = sum(observed_weights(batch[slice(a, b)]) for a, b in itertools.pairwise(cut))
    total = torch.zeros(2)
    for a, b in itertools.pairwise(cut):
        part = {name: logit[a:b] for name, logit in logits.items()}
        total += task_losses(part, batch[slice(a, b)], tasks, weights)
    for column, (name, _) in enumerate(tasks.items()):
        seen = batch.observed[:, column]
        x, y, w = (
            logits[name][seen, 0],
            batch.labels[seen, column].double(),
            batch.weight[seen].double(),
        )
        expected = (w * (torch.log1p(torch.exp(x)) - x * y)).sum() / w.sum()
        assert total[column].item() == pytest.approx(expected.item(), rel=32 * 2**-23)


def test_a_task_observed_nowhere_has_no_loss_and_no_gradient(batch):
    from dataclasses import replace

    unseen = replace(batch, observed=torch.zeros_like(batch.observed))
    logits = {name: logit.float().requires_grad_() for name, logit in logits_of(batch).items()}
    losses = task_losses(logits, unseen, written.schema().tasks, observed_weights(unseen))
    assert losses.tolist() == [0, 0]
    losses.sum().backward()
    assert all((logit.grad == 0).all() for logit in logits.values())


def test_observed_weights_are_sums_of_row_weights(batch):
    found = observed_weights(batch)
    assert found.dtype == torch.float64
    for column in range(2):
        assert found[column].item() == pytest.approx(
            batch.weight[batch.observed[:, column]].double().sum().item()
        )


class Constant(nn.Module):
    """A network that says the same for every row."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.3]))

    def forward(self, inputs):
        return {name: self.bias.expand(inputs.dense.shape[0], 1) for name in written.schema().tasks}


@pytest.mark.parametrize("weighting", [FixedWeighting(), UncertaintyWeighting()])
def test_gradients_do_not_depend_on_the_number_of_passes(weighting, batch):
    from infnet.model.tables import EmbeddingTables

    tables, gradients = EmbeddingTables(written.schema()), []
    for parts in (1, 4):
        objective = Objective(Constant(), weighting, written.schema().tasks)
        weights, size = observed_weights(batch), len(batch) // parts
        for part in range(parts):
            rows = batch[slice(part * size, (part + 1) * size)]
            loss, _ = objective(tables(rows), rows, weights, 1 / parts)
            loss.backward()
        gradients.append([p.grad.clone() for p in objective.parameters()])
    for one, four in zip(*gradients, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------


def test_a_global_batch_is_cut_without_rounding():
    found = batch_arithmetic(batch_size=1024, workers=2, micro_batch_size=128, lanes=8)
    assert (found.micro_batch_size, found.accumulation) == (128, 4)
    assert str(found) == "1024 rows per step = 2 workers × 4 passes × 128 rows, read in 8 lanes"
    assert (
        batch_arithmetic(batch_size=96, workers=3, micro_batch_size=None, lanes=3).micro_batch_size
        == 32
    )


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["train.batch_size=1000", "train.micro_batch_size=256"],
            r"batch_size \(1000\) must be a multiple of workers × micro_batch_size \(2 × 256 = 512\); the nearest is 1024",
        ),
        (
            ["train.lanes=3"],
            r"train.lanes \(3\) must be a multiple of compute.workers \(2\); the nearest is 4",
        ),
        (
            ["train.batch_size=30", "train.lanes=4"],
            r"train.batch_size \(30\) must be a multiple of train.lanes \(4\); the nearest is 32",
        ),
        (["train.batch_size=0"], r"train.batch_size must be at least 1, found 0"),
        (["train.micro_batch_size=-1"], r"train.micro_batch_size must be at least 1, found -1"),
        (["train.lanes=0"], r"train.lanes must be at least 1, found 0"),
        (
            ["train.strategy={type: single}"],
            "single is one worker, compute.workers is 2; use ddp or deepspeed",
        ),
        (
            ["train.strategy={type: deepspeed, zero_stage: 2, offload: parameters}"],
            "offload: parameters needs zero_stage 3 or more, found 2",
        ),
        (
            ["train.strategy={type: deepspeed, deepspeed_extra: {bf16: {enabled: true}}}"],
            r"deepspeed_extra.bf16 is derived from train.precision; set that and remove this key",
        ),
    ],
)
def test_a_configuration_whose_batch_does_not_divide_is_refused(sets, message):
    with pytest.raises(ConfigError, match=message):
        written.config("train.strategy={type: ddp}", "compute.workers=2", *sets)


def test_schedule_warms_up_and_falls_along_a_cosine():
    config = Optimizer(schedule="cosine", warmup_steps=4)
    factors = [schedule_factor(config, step, 12) for step in range(12)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[8] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert factors[-1] > 0
    assert schedule_factor(Optimizer(), 10**6, 12) == 1.0


def test_matrices_decay_and_vectors_do_not():
    groups = dense_optimizer(
        nn.Linear(3, 2).parameters(), Optimizer(type="adamw", weight_decay=0.1)
    ).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [
        (0.1, [2]),
        (0.0, [1]),
    ]


@pytest.mark.parametrize(
    ("kind", "reference"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("adagrad", torch.optim.Adagrad)],
)
def test_each_dense_optimizer_is_the_one_of_its_name(kind, reference):
    assert type(dense_optimizer(nn.Linear(2, 2).parameters(), Optimizer(type=kind))) is reference


def test_bf16_is_refused_without_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(
        ConfigError, match="train.precision: bf16 needs a CPU with AVX512_BF16, AMX_BF16"
    ):
        check_bf16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    check_bf16(torch.device("cpu"))


def test_train_defaults_divide():
    train = Train()
    batch_arithmetic(
        batch_size=train.batch_size, workers=8, micro_batch_size=None, lanes=train.lanes
    )
