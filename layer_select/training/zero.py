"""Steps by DeepSpeed ZeRO: optimizer state, gradients and weights shared out among the workers."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from layer_select.training.learner import Batch, Learner, optimizer_of
from layer_select.training.schedule import Schedule
from layer_select.training.stepper import Stepper
from rayrun.config import ConfigError
from rayrun.ray.worker import Worker


class Zero(Stepper):
    """An engine. Every worker makes the same number of passes in every step."""

    def __init__(self, worker: Worker, schedule: Schedule, learner: Learner) -> None:
        """Share `learner` out.

        Raises:
            ConfigError: `batch_rows` is no multiple of workers · rows of a pass.
        """
        from rayrun.ray.deepspeed import Engine, settings

        self._worker, self._schedule, self._learner = worker, schedule, learner
        rows, workers = schedule.batch_rows, worker.world_size
        self._micro_rows = schedule.micro_rows or max(1, rows // workers)
        if rows % (workers * self._micro_rows):
            section = schedule.section
            raise ConfigError(
                f"with {section}.zero_stage {schedule.zero_stage}, {section}.batch_rows ({rows}) "
                f"must be a multiple of workers × {section}.micro_rows ({workers} × "
                f"{self._micro_rows}); change one of them"
            )
        # ZeRO-3 leaves a slice of each parameter here: the whole ones go elsewhere at the end.
        self._whole: dict[str, nn.Module] = {}
        if schedule.zero_stage == 3:
            for name, child in learner.named_children():
                self._whole[name] = copy.deepcopy(child).cpu()
        self._engine = Engine(
            learner,
            optimizer_of(learner, schedule.lr, schedule.weight_decay),
            settings(
                batch_size=rows,
                micro_batch_size=self._micro_rows,
                workers=workers,
                zero_stage=schedule.zero_stage,
                clip_norm=schedule.clip_norm,
            ),
            worker.device,
        )

    def step(self, batch: Batch, rate: float) -> Tensor:
        """See `Stepper`.

        Raises:
            ConfigError: a GPU's memory has no room; workers cannot halve their passes alone, for
                every pass is one of all workers.
        """
        worker, learner = self._worker, self._learner
        counts = learner.counts(batch).to(worker.device)
        share = -(-len(batch) // worker.world_size)
        mine = batch[slice(worker.rank * share, (worker.rank + 1) * share)]
        passes = self._schedule.batch_rows // (worker.world_size * self._micro_rows)
        total = torch.zeros(len(counts), device=worker.device)
        self._engine.set_rate(rate)
        for number in range(passes):
            part = mine[slice(number * self._micro_rows, (number + 1) * self._micro_rows)]
            weight = 1.0 if len(part) else 0.0  # a short batch: the others wait for this pass
            try:
                losses = self._engine((part if weight else batch[:1]).to(worker.device), counts)
                loss = learner.weighted(losses) * weight
                self._engine.backward(
                    loss * worker.world_size
                )  # gradients are averaged, not summed
            except torch.OutOfMemoryError as error:
                section = self._schedule.section
                raise ConfigError(
                    f"{self._micro_rows} rows do not fit into the memory of {worker.device} "
                    f"({str(error).splitlines()[0]}); set {section}.micro_rows to "
                    f"{max(1, self._micro_rows // 2)}: with zero_stage all workers must agree on it"
                ) from error
            self._engine.step()
            total += losses.detach() * weight
        return worker.sum(total)

    def save(self, folder: Path) -> None:
        """See `Stepper`."""
        self._engine.save(folder)

    def load(self, folder: Path) -> None:
        """See `Stepper`."""
        self._engine.load(folder)

    def finish(self) -> None:
        """See `Stepper`; a collective."""
        if not self._whole:
            return
        weights, device = self._engine.weights(), self._worker.device
        for name, child in self._whole.items():
            inside = f"{name}."
            own = {k.removeprefix(inside): v for k, v in weights.items() if k.startswith(inside)}
            child.load_state_dict(own)
            setattr(self._learner, name, child.to(device))
        for name, parameter in list(self._learner.named_parameters(recurse=False)):
            whole = nn.Parameter(weights[name].to(device), requires_grad=parameter.requires_grad)
            setattr(self._learner, name, whole)
