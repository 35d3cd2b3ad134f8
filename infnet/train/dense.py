"""How an objective's parameters are trained: `single`, `ddp` or `deepspeed`, behind one small
interface.

Embedding tables are outside all of them. Every strategy averages gradients over the workers, and
the loss is a sum over workers (`infnet.train.step`), so a loss is multiplied by `loss_scale` before
its backward pass.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infnet.batch import Batch
from infnet.config import DeepSpeedStrategy, SingleStrategy, Train
from infnet.model.inputs import Inputs
from infnet.train.arithmetic import BatchArithmetic
from infnet.train.checkpoint import load_tensors, load_torch
from infnet.train.objective import Objective
from infnet.train.optimizer import dense_optimizer
from rayrun.ray.worker import Worker

DENSE = "dense.safetensors"
OPTIMIZER = "optimizer.pt"


class Dense(ABC):
    """Trains one objective. Methods are collectives: every worker calls them, in the same order."""

    loss_scale: float = 1.0

    @abstractmethod
    def losses(
        self, inputs: Inputs, batch: Batch, global_weights: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """`Objective.forward`, on the training path."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch; the `last` of a batch exchanges them between
        workers.
        """

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the forward and backward pass of a micro-batch."""
        return contextlib.nullcontext()

    @abstractmethod
    def update(self, lr: float) -> None:
        """Clip, update the parameters, forget the gradients."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The plain network with the current parameters, to predict with; its calls need not be in
        step.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """All parameters and buffers of the network, whole, on the CPU."""

    @abstractmethod
    def save(self, directory: Path, *, rank: int) -> None:
        """Write this worker's part of the training state."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Continue from a training state.

        Raises:
            ConfigError: a file is missing or damaged.
        """


def dense_trainer(
    objective: Objective, train: Train, arithmetic: BatchArithmetic, worker: Worker
) -> Dense:
    """The trainer of `train.strategy`."""
    strategy = train.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        return _DeepSpeed(objective, train, strategy, arithmetic, worker)
    if isinstance(strategy, SingleStrategy) or worker.world_size == 1:
        return _Plain(objective, train)
    return _Ddp(objective, train, worker)


def _of_network(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "network."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


class _Plain(Dense):
    def __init__(self, objective: Objective, train: Train) -> None:
        self._objective = self._called = objective
        self._parameters = [p for p in objective.parameters() if p.requires_grad]
        self._optimizer = dense_optimizer(self._parameters, train.optimizer)
        self._clip_norm = train.optimizer.clip_norm

    def losses(
        self, inputs: Inputs, batch: Batch, global_weights: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        return self._called(inputs, batch, global_weights, share)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def update(self, lr: float) -> None:
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def network(self) -> nn.Module:
        return self._objective.network

    def weights(self) -> dict[str, Tensor]:
        return _of_network(self._state())

    def save(self, directory: Path, *, rank: int) -> None:
        if rank == 0:
            save_file(self._state(), directory / DENSE)
            torch.save(self._optimizer.state_dict(), directory / OPTIMIZER)

    def load(self, directory: Path) -> None:
        self._objective.load_state_dict(load_tensors(directory / DENSE))
        self._optimizer.load_state_dict(load_torch(directory / OPTIMIZER))

    def _state(self) -> dict[str, Tensor]:
        return {k: v.detach().to("cpu", copy=True) for k, v in self._objective.state_dict().items()}


class _Ddp(_Plain):
    def __init__(self, objective: Objective, train: Train, worker: Worker) -> None:
        super().__init__(objective, train)
        self.loss_scale = float(worker.world_size)
        devices = [worker.device] if worker.device.type == "cuda" else None
        self._called = nn.parallel.DistributedDataParallel(objective, device_ids=devices)

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._called.no_sync()


class _DeepSpeed(Dense):
    def __init__(
        self,
        objective: Objective,
        train: Train,
        strategy: DeepSpeedStrategy,
        arithmetic: BatchArithmetic,
        worker: Worker,
    ) -> None:
        from rayrun.ray.deepspeed import Engine, settings

        self.loss_scale = float(worker.world_size)
        self._network = objective.network
        # ZeRO-3 keeps a slice of each parameter: prediction needs a whole network beside it.
        self._whole = copy.deepcopy(objective.network) if strategy.zero_stage == 3 else None
        self._engine = Engine(
            objective,
            dense_optimizer(objective.parameters(), train.optimizer),
            settings(
                batch_size=arithmetic.batch_size,
                micro_batch_size=arithmetic.micro_batch_size,
                workers=arithmetic.workers,
                zero_stage=strategy.zero_stage,
                offload=strategy.offload,
                clip_norm=train.optimizer.clip_norm,
                extra=strategy.deepspeed_extra,
            ),
            worker.device,
        )

    def losses(
        self, inputs: Inputs, batch: Batch, global_weights: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        return self._engine(inputs, batch, global_weights, share)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # counts the pass

    def update(self, lr: float) -> None:
        self._engine.set_rate(lr)
        self._engine.step()

    def network(self) -> nn.Module:
        if self._whole is None:
            return self._network
        self._whole.load_state_dict(self.weights())
        return self._whole

    def weights(self) -> dict[str, Tensor]:
        return _of_network(self._engine.weights())

    def save(self, directory: Path, *, rank: int) -> None:
        self._engine.save(directory)

    def load(self, directory: Path) -> None:
        self._engine.load(directory)
