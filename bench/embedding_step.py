"""Does a training step cost time in the rows of an embedding table? Prints the ratio of two times.

    python bench/embedding_step.py [--large 10_000_000] [--small 100_000] [--steps 60]

INFNet with its default configuration learns from Zipf-distributed ids (p ∝ 1/rank, as items of a
catalogue have). Two learners that differ in the rows of one table take the same steps in turn, so
that both see the same machine. The ratio of their medians must be at most 1.3: a step reads and
writes rows of the batch only. What is left of a difference is real: more distinct ids in a batch,
and rows that no cache holds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from infnet.batch import Batch, SequenceBatch
from infnet.config import InfnetConfig
from infnet.schema import FIRST_KNOWN, DenseSlot, FieldSlot, Schema, SequenceSlot, TableSpec
from infnet.tasks import BinaryTask
from infnet.train.arithmetic import batch_arithmetic
from infnet.train.learner import Learner
from rayrun.config import validate
from rayrun.ray.worker import SingleWorker

LIMIT = 1.3
FIELDS = 10
"""Categorical fields beside the item, 1,000 ids each."""
HISTORY = 20
BATCHES = 20


def schema(rows: int, dim: int) -> Schema:
    """One table of `rows` items, used by a field and a behaviour sequence; some small fields."""
    small = {f"field_{i}": TableSpec(rows=1000, dim=dim) for i in range(FIELDS)}
    return Schema(
        tables={"item": TableSpec(rows=rows, dim=dim), **small},
        fields=(FieldSlot(name="item", table="item"), *(FieldSlot(name=n, table=n) for n in small)),
        dense=(DenseSlot(name="age", width=1, kind="numeric"),),
        sequences=(
            SequenceSlot(name="clicks", max_length=HISTORY, tables=("item",), fields=("item",)),
        ),
        tasks={"click": BinaryTask(label="click"), "like": BinaryTask(label="like")},
        encoder_digest="sha256:bench",
    )


def zipf(shape: tuple[int, ...], rows: int, random: np.random.Generator) -> torch.Tensor:
    """Ids with p(rank) ∝ 1/rank, the ranks scattered over the whole table."""
    known = rows - FIRST_KNOWN
    rank = np.minimum((known + 1) ** random.random(shape), known).astype(np.int64) - 1
    step = 7_368_787  # prime, so that this is a bijection of the ranks
    return torch.from_numpy(rank * step % known + FIRST_KNOWN)


def batches(rows: int, batch_size: int) -> list[Batch]:
    """The same draws for every table size."""
    made = []
    for seed in range(BATCHES):
        random = np.random.default_rng(seed)
        item = zipf((batch_size, 1), rows, random)
        history = zipf((batch_size, HISTORY, 1), rows, random)
        others = torch.from_numpy(random.integers(1, 1000, (batch_size, FIELDS)))
        labels = torch.from_numpy(random.integers(0, 2, (batch_size, 2)).astype(np.float32))
        made.append(
            Batch(
                ids=torch.cat([item, others], dim=1),
                dense=torch.from_numpy(random.standard_normal((batch_size, 1)).astype(np.float32)),
                sequences={
                    "clicks": SequenceBatch(
                        ids=history,
                        ages=torch.ones(batch_size, HISTORY),
                        lengths=torch.full((batch_size,), HISTORY),
                    )
                },
                labels=labels,
                observed=torch.ones(batch_size, 2, dtype=torch.bool),
                weight=torch.ones(batch_size),
                user=torch.arange(batch_size),
                row_id=torch.arange(batch_size),
            )
        )
    return made


def configuration(batch_size: int, optimizer: str) -> InfnetConfig:
    """INFNet as it comes."""
    raw = {
        "name": "embedding_step",
        "data": {
            "source": {"path": "/nowhere", "columns": {"user": "user", "item": "item"}},
            "split": {"type": "column"},
        },
        "features": {"item": {"type": "categorical", "column": "item"}},
        "tasks": {n: {"type": "binary", "label": n} for n in ("click", "like")},
        "model": {"type": "infnet"},
        "train": {
            "batch_size": batch_size,
            "embeddings": {"type": optimizer, "lr": 1e-3, "l2": 1e-6},
        },
        "compute": {"type": "local"},
    }
    return validate(InfnetConfig, raw, where="bench")


def main() -> int:
    """Measure and print; exit code 1 where the ratio is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()

    config = configuration(asked.batch_size, asked.optimizer)
    arithmetic = batch_arithmetic(
        batch_size=asked.batch_size, workers=1, micro_batch_size=None, lanes=config.train.lanes
    )
    times: dict[int, list[float]] = {asked.small: [], asked.large: []}
    touched: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        worker = SingleWorker(Path(scratch))
        learners = {
            rows: Learner(config, schema(rows, asked.dim), arithmetic, worker, total_steps=1000)
            for rows in times
        }
        data = {rows: batches(rows, asked.batch_size) for rows in times}
        for rows, made in data.items():
            distinct = [
                torch.unique(torch.cat([b.ids[:, 0], b.sequences["clicks"].ids.flatten()])).numel()
                for b in made
            ]
            touched[rows] = statistics.mean(distinct)
        for step in range(-BATCHES, asked.steps):  # the first round warms up
            for rows in times if step % 2 else reversed(times):
                start = time.perf_counter()
                learners[rows].step(data[rows][step % BATCHES], step + BATCHES)
                if step >= 0:
                    times[rows].append(time.perf_counter() - start)
    for rows, seconds in times.items():
        print(
            f"{rows:>12,} rows × {asked.dim}: {statistics.median(seconds) * 1e3:7.2f} ms a step "
            f"(median), {touched[rows]:,.0f} distinct ids per step"
        )
    ratio = statistics.median(times[asked.large]) / statistics.median(times[asked.small])
    verdict = "ok" if ratio <= LIMIT else "TOO SLOW"
    print(f"ratio {ratio:.3f} (at most {LIMIT}): {verdict}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
