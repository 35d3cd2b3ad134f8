"""Learner: everything that a training step changes. Tables, network, their optimizers; step,
predict, save, load.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from infnet.batch import Batch
from infnet.config import InfnetConfig
from infnet.model.recommender import Recommender
from infnet.model.tables import EmbeddingTables
from infnet.schema import UNKNOWN, Schema
from infnet.train.arithmetic import BatchArithmetic
from infnet.train.checkpoint import TABLES, load_tensors
from infnet.train.dense import dense_trainer
from infnet.train.objective import Objective
from infnet.train.optimizer import schedule_factor
from infnet.train.rows import RowOptimizer
from infnet.train.step import observed_weights
from rayrun.config import ConfigError
from rayrun.ray.precision import check_bf16
from rayrun.ray.worker import Worker

ROWS = "rows.safetensors"


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
            ConfigError: `train.precision: bf16` on hardware without it, or the schema lacks what
                the model needs.
        """
        self.schema, self.worker = schema, worker
        self._train, self._arithmetic, self._total_steps = config.train, arithmetic, total_steps
        torch.manual_seed(config.train.seed)
        self.recommender = Recommender(config.model, schema).to(worker.device)
        if bf16 := config.train.precision == "bf16":
            check_bf16(worker.device)
        objective = Objective(
            self.recommender.network, config.train.weighting, schema.tasks, bf16=bf16
        ).to(worker.device)
        self.dense = dense_trainer(objective, config.train, arithmetic, worker)
        self.rows = RowOptimizer(self.recommender.tables, config.train.embeddings)

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
        for turn in range(passes):
            rows = batch[slice(turn * size, (turn + 1) * size)]
            last = turn == passes - 1
            with self.dense.accumulating(last=last):
                inputs = self.recommender.tables(rows)
                loss, parts = self.dense.losses(inputs, rows, weights, share)
                self.dense.backward(loss * self.dense.loss_scale, last=last)
            losses += parts
        rate = schedule_factor(self._train.optimizer, number, self._total_steps)
        self.dense.update(self._train.optimizer.lr * rate)
        self.rows.step(self.worker, loss_scale=self.dense.loss_scale, rate=rate)
        return losses

    @contextlib.contextmanager
    def predicting(self) -> Iterator[Recommender]:
        """The recommender as it would be published now: dropout off, ids never seen filled in.

        Training goes on afterwards as if nothing had been asked. A collective at its start only.
        """
        network = self.recommender.network
        self.recommender.network = self.dense.network()
        self.recommender.eval()
        try:
            with torch.no_grad(), self.published_tables():
                yield self.recommender
        finally:
            self.recommender.network = network

    @contextlib.contextmanager
    def published_tables(self) -> Iterator[EmbeddingTables]:
        """The embedding tables with ids never seen filled in; they are as they were when the block
        ends.
        """
        tables = self.recommender.tables
        embeddings = [m for m in tables.modules() if isinstance(m, nn.Embedding)]
        unknown = [embedding.weight[UNKNOWN].detach().clone() for embedding in embeddings]
        tables.fill_cold_start()
        try:
            yield tables
        finally:
            with torch.no_grad():
                for embedding, row in zip(embeddings, unknown, strict=True):
                    embedding.weight[UNKNOWN] = row

    def save(self, directory: Path) -> None:
        """This worker's part of everything a resumed run needs."""
        self.dense.save(directory, rank=self.worker.rank)
        if self.worker.rank == 0:
            save_file(on_cpu(self.recommender.tables.state_dict()), directory / TABLES)
            save_file(on_cpu(self.rows.state_dict()), directory / ROWS)

    def load(self, directory: Path) -> None:
        """Continue from a saved state.

        Raises:
            ConfigError: a file is missing or damaged, or of another model.
        """
        try:
            self.recommender.tables.load_state_dict(load_tensors(directory / TABLES))
            self.rows.load_state_dict(load_tensors(directory / ROWS))
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


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary ready to be written."""
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
