"""The training loop, written against a `Worker`: it runs alone, on Ray Train, anywhere.

Every worker runs this function with the same configuration; each reads its part of the same global
batches. What a run leaves behind: `checkpoint/` (the best weights) and `metrics.jsonl` under `out`,
and its resumable state in the worker's checkpoints.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from infnet import sections
from infnet.config import InfnetConfig
from infnet.data.loader import TrainLoader
from infnet.schema import Schema
from infnet.train import checkpoint
from infnet.train.arithmetic import batch_arithmetic
from infnet.train.journal import Journal, check_watched
from infnet.train.learner import Learner
from infnet.train.log import RunLog
from infnet.train.validation import validate
from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.metrics import Metrics, peak_memory
from rayrun.ray.worker import Worker

LOG_EVERY_STEPS = 20


class Place(NamedTuple):
    """Where a run reads and writes."""

    dataset: str
    """Prepared dataset."""
    out: str
    """Run directory."""


def nothing(steps: int, metrics: Metrics) -> None:
    """Nobody else wants to know of an evaluation."""


def fit(
    worker: Worker,
    config: InfnetConfig,
    schema: Schema,
    place: Place,
    *,
    evaluated: Callable[[int, Metrics], None] = nothing,
) -> Json:
    """Train `config.model` and keep its best checkpoint; continue if the worker has a checkpoint.

    After each evaluation every worker calls `evaluated` with the optimizer steps done and the
    validation metrics, the same on all; a search that gives up on this run ends it there.

    Returns what rank 0 knows at the end: `best_step`, `best_score`, `metrics` of the best
    evaluation, `steps`, `started_at` (the step this attempt resumed at), `rows`, `stopped_early`,
    `train_s` (of this attempt), `peak_memory_bytes`.

    Raises:
        ConfigError: the data do not fit the configuration, bf16 without hardware, a damaged state,
            or a loss that is not finite.
    """
    train, started = config.train, time.monotonic()
    check_watched(schema.tasks, train.early_stopping)
    arithmetic = batch_arithmetic(
        batch_size=train.batch_size,
        workers=worker.world_size,
        micro_batch_size=train.micro_batch_size,
        lanes=train.lanes,
    )
    loader = TrainLoader(
        place.dataset,
        schema,
        batch_size=train.batch_size,
        rank=worker.rank,
        world_size=worker.world_size,
        lanes=train.lanes,
        shuffle_rows=train.shuffle_rows,
        seed=train.seed,
    )
    total_steps = train.epochs * loader.steps_per_epoch
    learner = Learner(config, schema, arithmetic, worker, total_steps=total_steps)
    same = {"config": config.digest(sections.TRAIN), "schema": checkpoint.schema_digest(schema)}
    journal = Journal(same)
    if newest := worker.latest_checkpoint():
        journal.restore(newest)
        learner.load(newest)

    started_at, losses = journal.steps, _Mean(len(schema.tasks), worker)
    with RunLog(place.out, config, worker, resume_at=started_at) as log:
        while journal.epoch < train.epochs and not journal.stopped_early:
            for batch in loader.epoch(journal.epoch, start_step=journal.step):
                losses.add(learner.step(batch.to(worker.device), journal.steps))
                journal.stepped(loader.steps_per_epoch)
                last = journal.steps == total_steps
                evaluate = last or _due(train.evaluate_every_steps, journal)
                keep = last or _due(train.checkpoint_every_steps, journal)

                if evaluate or keep or journal.steps % LOG_EVERY_STEPS == 0:
                    log.losses(journal.steps, _finite(losses.take(), schema, journal.steps))
                worker.progress(journal.steps, total_steps, log.note)
                if evaluate:
                    metrics = validate(learner, config, schema, place.dataset)
                    log.metrics(journal.steps, metrics)
                    if journal.evaluated(metrics, schema.tasks, train.early_stopping):
                        _publish(learner, config, schema, journal, place.out)
                    evaluated(journal.steps, metrics)
                if keep or journal.stopped_early:
                    _save(learner, journal, log)
                if journal.stopped_early:
                    break
    return {
        "best_step": journal.best_step,
        "best_score": journal.best_score,
        "metrics": journal.best_metrics,
        "steps": journal.steps,
        "started_at": started_at,
        "rows": journal.steps * train.batch_size,
        "stopped_early": journal.stopped_early,
        "train_s": time.monotonic() - started,
        "peak_memory_bytes": peak_memory(),
    }


def _due(every: int, journal: Journal) -> bool:
    return journal.step == 0 if every == 0 else journal.steps % every == 0


def _publish(
    learner: Learner, config: InfnetConfig, schema: Schema, journal: Journal, out: str
) -> None:
    """Write the best checkpoint; the whole weights are a collective of all workers."""
    network = learner.dense.weights()
    with tempfile.TemporaryDirectory(prefix="tables-") as folder:
        tables = Path(folder) / checkpoint.TABLES
        with learner.published_tables():
            learner.write_tables(tables)
        if learner.worker.rank == 0:
            checkpoint.write(
                storage.join(out, checkpoint.CHECKPOINT),
                config=config,
                schema=schema,
                network=network,
                tables=tables,
                info={
                    "step": journal.steps,
                    "score": journal.best_score,
                    "metrics": journal.best_metrics,
                },
            )
    learner.worker.barrier()


def _save(learner: Learner, journal: Journal, log: RunLog) -> None:
    """Report a checkpoint that a restarted run continues from, exact to the row."""
    log.flush()
    with tempfile.TemporaryDirectory(prefix="state-") as folder:
        learner.save(Path(folder))
        if learner.worker.rank == 0:
            journal.write(Path(folder))
        learner.worker.report({"steps": float(journal.steps)}, Path(folder))


class _Mean:
    """Mean loss per task over the steps since the last `take`."""

    def __init__(self, num_tasks: int, worker: Worker) -> None:
        self.worker, self.count = worker, 0
        self.total = torch.zeros(num_tasks, device=worker.device)

    def add(self, losses: Tensor) -> None:
        self.total += losses
        self.count += 1

    def take(self) -> list[float]:
        mean = self.worker.sum(self.total) / self.count
        self.total, self.count = torch.zeros_like(self.total), 0
        return mean.tolist()


def _finite(losses: list[float], schema: Schema, step: int) -> dict[str, float]:
    named = dict(zip(schema.tasks, losses, strict=True))
    for name, loss in named.items():
        if not abs(loss) < float("inf"):
            raise ConfigError(
                f"the training loss of task {name} must be finite, found {loss} by step {step}; "
                "lower train.optimizer.lr or train.embeddings.lr, or set train.optimizer.clip_norm"
            )
    return named
