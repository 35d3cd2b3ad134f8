"""Metrics on the validation split while a run trains: every worker scores its part, rank 0 measures
all rows.
"""

import json

import torch

from infnet.config import InfnetConfig
from infnet.data.loader import scan
from infnet.evaluate.metrics import AVERAGE, compute
from infnet.evaluate.predictions import Predictions
from infnet.schema import Schema
from infnet.train.learner import Learner
from rayrun.config import ConfigError
from rayrun.metrics import Metrics

SPLIT = "valid"


def validate(learner: Learner, config: InfnetConfig, schema: Schema, dataset: str) -> Metrics:
    """`{task: {metric: value}}` on the validation rows, the same on every worker; None where not
    defined.

    Beside the metrics of the task's type there is `loss`, what training minimises. A collective.

    Raises:
        ConfigError: a prediction is not finite, or a shard is damaged.
    """
    worker, tasks = learner.worker, schema.tasks
    columns: list[list[torch.Tensor]] = [[], [], [], [], [], []]
    totals = torch.zeros(2, len(tasks), dtype=torch.float64, device=worker.device)
    with learner.predicting():
        rows = scan(
            dataset,
            SPLIT,
            schema,
            config.evaluate.batch_size,
            rank=worker.rank,
            world_size=worker.world_size,
        )
        for batch, logits in learner.logits(batch.to(worker.device) for batch in rows):
            predictions = []
            for column, (name, task) in enumerate(tasks.items()):
                logit = logits[name].float()
                predictions.append(task.predict(logit))
                observed, weight = batch.observed[:, column], batch.weight
                losses = task.loss(logit, batch.labels[:, column])
                totals[0, column] += (losses * weight)[observed].sum(dtype=torch.float64)
                totals[1, column] += weight[observed].sum(dtype=torch.float64)
            parts = (
                batch.row_id,
                batch.user,
                batch.weight,
                torch.stack(predictions, dim=1),
                batch.labels,
                batch.observed,
            )
            for held, part in zip(columns, parts, strict=True):
                held.append(part)
    gathered = [_everyones(held, learner, like) for held, like in zip(columns, _EMPTY, strict=True)]
    loss, weight = worker.sum(totals).tolist()
    metrics: Metrics = {}
    if worker.rank == 0:
        metrics = _measured(gathered, schema)
        for name, total, count in zip(tasks, loss, weight, strict=True):
            metrics[name]["loss"] = total / count if count else None
    return _told(metrics, learner)


_EMPTY = (
    torch.empty(0, dtype=torch.int64),
    torch.empty(0, dtype=torch.int64),
    torch.empty(0),
    torch.empty(0, 0),
    torch.empty(0, 0),
    torch.empty(0, 0, dtype=torch.bool),
)


def _everyones(held: list[torch.Tensor], learner: Learner, like: torch.Tensor) -> torch.Tensor:
    shape = (0,) if like.ndim == 1 else (0, len(learner.schema.tasks))
    mine = torch.cat(held) if held else like.new_empty(shape, device=learner.worker.device)
    # torch.distributed has no bool; a byte holds it
    parts = learner.worker.gather_rows(mine.byte() if mine.dtype == torch.bool else mine)
    return torch.cat(parts).to(mine.dtype).cpu()


def _measured(gathered: list[torch.Tensor], schema: Schema) -> Metrics:
    predictions = Predictions(list(schema.tasks))
    try:
        predictions.update(*(column.numpy() for column in gathered))
    except ValueError as error:
        raise ConfigError(
            f"validation: {error}; the parameters have diverged, lower train.optimizer.lr or "
            "train.embeddings.lr, or set train.optimizer.clip_norm"
        ) from error
    values = compute(predictions, schema.tasks, ndcg_at=(), threads=1).values
    return {name: dict(row) for name, row in values.items() if name != AVERAGE}


def _told(metrics: Metrics, learner: Learner) -> Metrics:
    """What rank 0 has found, on every worker."""
    worker = learner.worker
    text = json.dumps(metrics).encode() if worker.rank == 0 else b""
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0).byte()
    found = worker.gather_rows(mine.to(worker.device))[0]
    return json.loads(bytes(found.cpu().tolist()))
