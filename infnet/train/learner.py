"""Learner: everything that a training step changes. Tables, network, their optimizers; step,
predict, save, load.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from infnet.batch import Batch
from infnet.config import InfnetConfig
from infnet.model.recommender import Recommender
from infnet.model.tables import EmbeddingTables
from infnet.schema import Schema
from infnet.train.arithmetic import BatchArithmetic
from infnet.train.dense import dense_trainer
from infnet.train.objective import Objective
from infnet.train.optimizer import schedule_factor
from infnet.train.rows import RowOptimizer
from infnet.train.shards import Shards, share_of
from infnet.train.step import observed_weights
from infnet.train.table_files import WHOLE, SavedTables, TableWriter, save
from rayrun.config import ConfigError
from rayrun.ray.precision import check_bf16
from rayrun.ray.worker import Worker

TABLES, ROWS = "tables", "rows"
"""Files of a training state: embedding tables, and the state of their optimizer."""
STEPS = "steps"


class Learner:
    """A recommender being trained by the workers of a run."""

    def __init__(
        self,
        config: InfnetConfig,
        schema: Schema,
        arithmetic: BatchArithmetic,
        worker: Worker,
        *,
        total_steps: int,
    ) -> None:
        """Build the model of `config` with the parameters that `train.seed` gives, the same on all
        workers.

        Raises:
            ConfigError: `train.precision: bf16` on hardware without it, the schema lacks what the
                model needs, or a table cannot be split over these workers.
        """
        self.schema, self.worker = schema, worker
        self._train, self._arithmetic, self._total_steps = config.train, arithmetic, total_steps
        share = share_of(config, schema, worker)
        torch.manual_seed(config.train.seed)
        tables = EmbeddingTables(schema, config.model.table_copies(schema), share=share)
        self.recommender = Recommender(config.model, schema, tables).to(worker.device)
        if bf16 := config.train.precision == "bf16":
            check_bf16(worker.device)
        objective = Objective(
            self.recommender.network, config.train.weighting, schema.tasks, bf16=bf16
        ).to(worker.device)
        self.dense = dense_trainer(objective, config.train, arithmetic, worker)
        self.rows = RowOptimizer(tables, config.train.embeddings)
        self.shards = Shards(tables, worker)

    def step(self, batch: Batch, number: int) -> Float[Tensor, " T"]:
        """Optimizer step `number` (from 0) on this worker's part of a global batch.

        Returns this worker's part of the mean loss per task. The dropout of a step depends on the
        seed, the worker and the step only: a resumed run needs no generator state.
        """
        self._seed(number)
        self.recommender.train()
        weights = self.worker.sum(observed_weights(batch))
        losses = torch.zeros(len(self.schema.tasks), device=batch.weight.device)
        size, passes = self._arithmetic.micro_batch_size, self._arithmetic.accumulation
        share = 1 / (passes * self.worker.world_size)
        brought = self.shards.bring(batch)
        for turn in range(passes):
            rows = batch[slice(turn * size, (turn + 1) * size)]
            last = turn == passes - 1
            with self.dense.accumulating(last=last):
                inputs = self.recommender.tables(rows, brought)
                loss, parts = self.dense.losses(inputs, rows, weights, share)
                self.dense.backward(loss * self.dense.loss_scale, last=last)
            losses += parts
        rate = schedule_factor(self._train.optimizer, number, self._total_steps)
        self.dense.update(self._train.optimizer.lr * rate)
        taken = self.shards.take_back(brought)
        self.rows.step(self.worker, taken, loss_scale=self.dense.loss_scale, rate=rate)
        return losses

    @contextlib.contextmanager
    def predicting(self) -> Iterator[Recommender]:
        """The recommender as it would be published now: dropout off, ids never seen filled in.

        Training goes on afterwards as if nothing had been asked. A collective at its start; where
        tables are split, so is each prediction (`logits`).
        """
        network = self.recommender.network
        self.recommender.network = self.dense.network()
        self.recommender.eval()
        try:
            with torch.no_grad(), self.published_tables():
                yield self.recommender
        finally:
            self.recommender.network = network

    def logits(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """Each batch with the logits of its rows, while `predicting`.

        A worker that has no more batches answers the others until they have none either, where
        tables are split.
        """
        if not self.shards.parameters:
            for batch in batches:
                yield batch, self.recommender(batch)
            return
        waiting = iter(batches)
        while True:
            batch = next(waiting, None)
            if not self.worker.sum(torch.tensor(int(batch is not None), device=self.worker.device)):
                return
            brought = self.shards.bring(batch)
            if batch is not None:
                yield batch, self.recommender(batch, brought)

    @contextlib.contextmanager
    def published_tables(self) -> Iterator[EmbeddingTables]:
        """The embedding tables with ids never seen filled in; they are as they were when the block
        ends. A collective at its start.
        """
        tables = self.recommender.tables
        unknown = {name: tables.unknown(name).detach().clone() for name in tables.names}
        tables.fill_cold_start(self.worker.sum)
        try:
            yield tables
        finally:
            with torch.no_grad():
                for name, row in unknown.items():
                    tables.unknown(name).copy_(row)

    def write_tables(self, path: Path) -> None:
        """Worker 0 writes all tables whole, as if none were split, and holds none. A collective."""
        tables = self.recommender.tables
        weights = dict(tables.named_parameters())
        writer = None
        if self.worker.rank == 0:
            totals = zip(weights.items(), tables.specs.values(), strict=True)
            writer = TableWriter(
                path, {n: (w.dtype, (spec.rows, w.shape[1])) for (n, w), spec in totals}
            )
        for name, weight in zip(tables.names, weights.values(), strict=True):
            blocks = self.shards.blocks(name) if name in tables.split else [weight]
            if writer:
                writer.write(blocks)
            else:
                for _ in blocks:
                    pass  # sends this worker's rows
        if writer:
            writer.close()

    def save(self, directory: Path) -> None:
        """This worker's part of everything a resumed run needs."""
        self.dense.save(directory, rank=self.worker.rank)
        share, split = self.recommender.tables.share, set(self.shards.parameters.values())
        save(directory, TABLES, dict(self.recommender.tables.named_parameters()), share, split)
        save(directory, ROWS, self.rows.state_dict(), share, split)

    def load(self, directory: Path) -> None:
        """Continue from a saved state, of any number of workers.

        Raises:
            ConfigError: a file is missing or damaged, or of another model.
        """
        tables = self.recommender.tables
        saved, saved_rows = SavedTables(directory, TABLES), SavedTables(directory, ROWS)
        try:
            with torch.no_grad():
                for table, (name, weight) in zip(
                    tables.names, tables.named_parameters(), strict=True
                ):
                    share = tables.share if table in tables.split else WHOLE
                    total = tables.specs[table].rows
                    saved.fill(name, weight, total, share)
                    saved_rows.fill(name, self.rows.state[name], total, share)
            self.rows.steps = int(saved_rows.whole[STEPS])
            self.dense.load(directory)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the training state in {directory} belongs to another model "
                f"({str(error).splitlines()[0]}); remove the run directory and start again"
            ) from error

    def _seed(self, number: int) -> None:
        run, rank = self._train.seed % 2**20, self.worker.rank % 2**12
        torch.manual_seed((run << 43) | (rank << 31) | number % 2**31)
