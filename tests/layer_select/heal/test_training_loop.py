"""The one loop: passes, workers, memory, DeepSpeed; the same steps whatever the way."""

from dataclasses import replace
from threading import Barrier, Thread

import pytest
import torch

from layer_select.heal.config import Heal
from layer_select.heal.work import schedule_of
from layer_select.training.loop import fit
from rayrun.config import ConfigError, validate
from rayrun.ray.worker import SingleWorker

TASKS = {"objectives": [{"type": "task"}, {"type": "tokens"}]}
"""No teacher: a step is what is looked at."""


@pytest.fixture(scope="module")
def heal(heal_config):
    raw = {**heal_config.heal.to_dict(), **TASKS, "steps": 5, "clip_norm": 0.5}
    return validate(Heal, raw, where="test")


@pytest.fixture(scope="module")
def taken(heal, healing_of, tmp_path_factory):
    """`run(**changes of the schedule)`: losses and weights after five steps."""

    def run(worker=None, learner=None, **changes):
        fresh, curriculum = healing_of((0, 11), heal=heal)
        learner = learner or fresh
        worker = worker or SingleWorker(tmp_path_factory.mktemp("run"))
        schedule = replace(schedule_of(heal), checkpoint_every_steps=2, **changes)
        found = fit(worker, schedule, learner, curriculum.rows)
        return found, {n: p.detach().clone() for n, p in learner.named_parameters()}

    return run


@pytest.fixture(scope="module")
def whole(taken):
    return taken()


def assert_same(found, expected):
    losses, weights = found
    assert losses["steps"] == expected[0]["steps"] == 5
    assert losses["losses"] == [pytest.approx(row, rel=1e-5) for row in expected[0]["losses"]]
    assert weights.keys() == expected[1].keys()
    for name, value in expected[1].items():
        # Adam divides by the root of a square that may be as small as its ε: rounding shows there.
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("micro_rows", [1, 4])
def test_passes_do_not_change_the_steps(taken, whole, micro_rows):
    assert_same(taken(micro_rows=micro_rows), whole)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_takes_the_same_steps(taken, whole, stage):
    found = taken(zero_stage=stage, micro_rows=2)
    assert_same(found, whole)


class Half(SingleWorker):
    """One of two workers, run in turn."""

    world_size = 2

    def __init__(self, directory, rank, exchange):
        super().__init__(directory)
        self.rank, self.exchange = rank, exchange

    def sum(self, value):
        return self.exchange(self.rank, value)


def test_two_workers_take_the_steps_of_one(taken, whole, tmp_path):
    barrier, slots, found = Barrier(2), {}, {}

    def exchange(rank, value):
        slots[rank] = value
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        return total

    def work(rank):
        found[rank] = taken(worker=Half(tmp_path / str(rank), rank, exchange), micro_rows=2)

    threads = [Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(found[0], whole)
    assert_same(found[1], whole)


class Interrupted(SingleWorker):
    """Stops at its second checkpoint, as a killed process would."""

    saved = 0

    def report(self, metrics, checkpoint=None):
        super().report(metrics, checkpoint)
        self.saved += 1
        if self.saved == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", [0, 2])
def test_a_resumed_run_ends_where_the_other_does(taken, whole, tmp_path, stage):
    how = {"zero_stage": stage, "micro_rows": 2 if stage else 0}
    with pytest.raises(KeyboardInterrupt):
        taken(worker=Interrupted(tmp_path), **how)
    again = taken(worker=SingleWorker(tmp_path), **how)
    assert again[0]["started_at"] == 4
    assert_same(again, whole)


def without_room(learner, rows):
    """As a GPU whose memory holds `rows` rows."""
    losses = learner.losses

    def cramped(batch, counts):
        if len(batch) > rows:
            raise torch.OutOfMemoryError(f"no room for {len(batch)} rows")
        return losses(batch, counts)

    learner.losses = cramped
    return learner


def test_without_room_a_pass_is_halved_and_it_is_said(taken, whole, heal, healing_of):
    learner = without_room(healing_of((0, 11), heal=heal)[0], 2)
    found = taken(learner=learner)
    assert found[0]["micro_rows"] == 1  # 6 → 3 → 1
    assert_same(found, whole)
    with pytest.raises(ConfigError, match="one row of heal.row_tokens tokens does not fit into"):
        taken(learner=without_room(healing_of((0, 11), heal=heal)[0], 0))
    with pytest.raises(ConfigError, match=r"2 rows do not fit .* set heal.micro_rows to 1: with"):
        taken(
            learner=without_room(healing_of((0, 11), heal=heal)[0], 1), zero_stage=1, micro_rows=2
        )


def test_rows_that_zero_cannot_share_out_are_refused(taken):
    with pytest.raises(ConfigError, match=r"heal.batch_rows \(6\) must be a multiple of workers ×"):
        taken(zero_stage=2, micro_rows=4)


def test_a_loss_that_is_not_finite_is_told(taken, heal, healing_of):
    learner = healing_of((0, 11), heal=heal)[0]
    with torch.no_grad():
        learner.student.projection.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"the healing loss task must be finite, found nan"):
        taken(learner=learner)
