"""Scoring: every row of a split or of a raw file through the model and its rivals, in equal
parts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from infnet.batch import Batch
from infnet.data.loader import scan
from infnet.data.shards import SplitName
from infnet.evaluate.predictions import Rows
from infnet.evaluate.raw import RawReader
from infnet.features.batches import to_batch
from infnet.model.recommender import Recommender
from infnet.schema import Schema
from infnet.train.checkpoint import load

BATCHES_OF_A_PART = 8


@dataclass(frozen=True)
class SplitRows:
    """A split of a prepared dataset."""

    dataset: str
    split: SplitName
    rows: int

    def parts(self, batch_size: int) -> int:
        """Parts that workers share. They and their batches depend on the rows alone.

        A matrix product may round a row differently in another batch, and the last bit can break a
        tie; so one worker and eight score the same batches.
        """
        return max(1, -(-self.rows // (BATCHES_OF_A_PART * batch_size)))


@dataclass(frozen=True)
class Job:
    """What one worker needs to score its part. Picklable."""

    models: Mapping[str, str]
    """Run directories by name; all with the schema of the first."""
    rows: SplitRows | RawReader
    batch_size: int
    gpu: bool = False


@dataclass(frozen=True)
class Scored:
    """Some rows, scored by every model, and bad rows met on the way."""

    rows: Mapping[str, Rows]
    bad: pa.Table | None = None


def score(job: Job, rank: int = 0, world_size: int = 1) -> Iterator[Scored]:
    """This worker's part of the rows; all workers together see each row once.

    Raises:
        ConfigError: a damaged checkpoint or dataset, or models of different schemas.
    """
    device = torch.device("cuda" if job.gpu else "cpu")
    models: dict[str, Recommender] = {}
    schema: Schema | None = None
    for name, place in job.models.items():
        model, found, _ = load(place)
        schema = schema or found
        models[name] = model.to(device)
    assert schema is not None
    if isinstance(job.rows, SplitRows):
        place, split, parts = job.rows.dataset, job.rows.split, job.rows.parts(job.batch_size)
        for part in range(rank, parts, world_size):
            for batch in scan(place, split, schema, job.batch_size, part, parts):
                yield Scored(score_batch(models, schema, batch, device))
        return
    for index in range(rank, len(job.rows.log.fragments()), world_size):
        for encoded, bad in job.rows.read(index):
            for start in range(0, encoded.num_rows, job.batch_size):
                batch = to_batch(encoded.slice(start, job.batch_size), schema)
                yield Scored(score_batch(models, schema, batch, device))
            if bad.num_rows:
                yield Scored({}, bad)


class Scorer:
    """`score` as an actor: one piece per call."""

    def __init__(self, job: Job, rank: int, world_size: int) -> None:
        """Scores nothing yet."""
        self._pieces = score(job, rank, world_size)

    def next(self) -> Scored | None:
        """The next piece; None when there is no more."""
        return next(self._pieces, None)


def score_batch(
    models: Mapping[str, Recommender], schema: Schema, batch: Batch, device: torch.device
) -> dict[str, Rows]:
    """One batch through every model."""
    labels, observed = batch.labels.numpy(), batch.observed.numpy()
    fixed = (batch.row_id.numpy(), batch.user.numpy(), batch.weight.numpy())
    moved = batch.to(device)
    return {
        name: Rows(*fixed, predicted(model, schema, moved), labels, observed)
        for name, model in models.items()
    }


def predicted(model: Recommender, schema: Schema, batch: Batch) -> np.ndarray:
    """Predictions [B, T] in the order of the schema's tasks."""
    found = model.predict(batch)
    return torch.stack([found[task] for task in schema.tasks], dim=1).float().cpu().numpy()
