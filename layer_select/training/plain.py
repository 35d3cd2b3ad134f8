"""Steps with whole weights on every worker."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from layer_select.training.learner import Batch, Learner, optimizer_of
from layer_select.training.schedule import Schedule
from layer_select.training.stepper import Stepper, damaged
from rayrun.config import ConfigError
from rayrun.ray.worker import Worker

STATE = "state.pt"


class Plain(Stepper):
    """One pass or several for a worker's rows; gradients are summed over passes and workers."""

    def __init__(self, worker: Worker, schedule: Schedule, learner: Learner) -> None:
        self._worker, self._schedule, self._learner = worker, schedule, learner
        self._parameters = list(learner.trained().values())
        self._optimizer = optimizer_of(learner, schedule.lr, schedule.weight_decay)
        self._micro_rows = schedule.micro_rows

    def step(self, batch: Batch, rate: float) -> Tensor:
        """See `Stepper`."""
        worker, learner = self._worker, self._learner
        counts = learner.counts(batch).to(worker.device)
        share = -(-len(batch) // worker.world_size)
        mine = batch[slice(worker.rank * share, (worker.rank + 1) * share)]
        losses = self._learn(mine, counts)
        if worker.world_size > 1:
            self._share_gradients()
        if self._schedule.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return worker.sum(losses)

    def _learn(self, mine: Batch, counts: Tensor) -> Tensor:
        """Forward and backward of these rows, in halves where memory has no room for the whole."""
        while True:
            try:
                total = torch.zeros(len(counts), device=counts.device)
                for part in self._passes(mine):
                    losses = self._learner(part.to(counts.device), counts)
                    self._learner.weighted(losses).backward()
                    total += losses.detach()
                return total
            except torch.OutOfMemoryError as error:
                self._halve(len(mine), error)

    def _passes(self, mine: Batch) -> Iterator[Batch]:
        size = self._micro_rows or max(1, len(mine))
        for start in range(0, len(mine), size):
            yield mine[slice(start, start + size)]

    def _halve(self, rows: int, error: Exception) -> None:
        size = min(self._micro_rows or rows, rows)
        if size <= 1:
            section = self._schedule.section
            raise ConfigError(
                f"one row of {section}.row_tokens tokens does not fit into the memory of "
                f"{self._worker.device} ({str(error).splitlines()[0]}); lower {section}.row_tokens,"
                f" set {section}.precision: bf16, or take a larger GPU"
            ) from error
        self._optimizer.zero_grad(set_to_none=True)  # of the passes that went through
        self._micro_rows = self.halved_to = size // 2
        if self._worker.device.type == "cuda":
            torch.cuda.empty_cache()

    def _share_gradients(self) -> None:
        """Sum gradients over the workers; one that had no rows takes part with zeros."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        total = self._worker.sum(torch.cat([g.flatten() for g in grads]))
        sizes = [p.numel() for p in self._parameters]
        for parameter, part in zip(self._parameters, total.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def save(self, folder: Path) -> None:
        """Rank 0 writes what is trained; what is frozen is where it was."""
        if self._worker.rank == 0:
            trained = {name: p.detach() for name, p in self._learner.trained().items()}
            state = {"student": trained, "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / STATE)

    def load(self, folder: Path) -> None:
        """See `Stepper`."""
        try:
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            there, trained = state["student"], self._learner.trained()
            if there.keys() != trained.keys():
                raise ValueError("its parameters have other names")
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(there[name])
            self._optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch, zipfile and pickle each raise their own
            raise damaged(folder / STATE, error) from error

    def finish(self) -> None:
        """They are there."""
