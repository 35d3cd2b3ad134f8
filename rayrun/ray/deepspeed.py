"""DeepSpeed ZeRO over the dense parameters: settings derived from the batch arithmetic, one engine,
save and load.

Embedding tables stay outside: ZeRO 1 to 3 refuse sparse gradients. The optimizer is a torch one,
handed to the engine, so nothing of DeepSpeed has to be compiled; the process group is the one of
Ray Train.
"""

import contextlib
import importlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from rayrun.config import ConfigError, Json

DERIVED: dict[str, str] = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size, compute.workers and train.micro_batch_size",
    "gradient_clipping": "train.optimizer.clip_norm",
    "gradient_allreduce_op": "the loss, which is a sum over workers",
    "optimizer": "train.optimizer",
    "scheduler": "train.optimizer.schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "torch_autocast": "train.precision",
    "amp": "train.precision",
    "sparse_gradients": "the tables, which are outside the engine",
    "zero_allow_untested_optimizer": "train.optimizer",
    "zero_force_ds_cpu_optimizer": "train.optimizer",
    "zero_optimization.stage": "train.strategy.zero_stage",
    "zero_optimization.offload_optimizer": "train.strategy.offload",
    "zero_optimization.offload_param": "train.strategy.offload",
    "zero_optimization.cpu_offload": "train.strategy.offload",
}
"""DeepSpeed's keys that are computed here, and from what."""

Offload = Literal["none", "optimizer", "parameters"]


def refuse_derived(extra: Mapping[str, object]) -> None:
    """`deepspeed_extra` holds nothing that is derived.

    Raises:
        ValueError: it does; the message says which of our keys decides.
    """
    for path in _paths(extra):
        for derived, ours in DERIVED.items():
            if path == derived or path.startswith(derived + "."):
                raise ValueError(
                    f"deepspeed_extra.{path} is derived from {ours}; set that and remove this key"
                )


def _paths(extra: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in extra.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _paths(cast(Mapping[str, object], value), f"{prefix}{key}.")


def settings(
    *,
    batch_size: int,
    micro_batch_size: int,
    workers: int,
    zero_stage: int,
    offload: Offload = "none",
    clip_norm: float = 0.0,
    extra: Mapping[str, object] | None = None,
) -> Json:
    """DeepSpeed's settings of a run. `batch_size` = workers × accumulation × micro_batch_size,
    exactly.

    Raises:
        ValueError: the numbers do not divide, or `extra` holds a derived key.
    """
    if batch_size % (workers * micro_batch_size):
        raise ValueError(
            f"batch_size ({batch_size}) must be a multiple of workers × micro_batch_size "
            f"({workers} × {micro_batch_size} = {workers * micro_batch_size})"
        )
    refuse_derived(extra or {})
    zero: Json = {"stage": zero_stage}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    ours: Json = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": batch_size // (workers * micro_batch_size),
        "gradient_clipping": clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    return _merged(dict(extra or {}), ours)


def _merged(under: Json, over: Json) -> Json:
    merged = dict(under)
    for key, value in over.items():
        there = merged.get(key)
        both = isinstance(there, dict) and isinstance(value, dict)
        merged[key] = _merged(cast(Json, there), cast(Json, value)) if both else value
    return merged


class Engine:
    """A network and its optimizer inside DeepSpeed. All methods are collectives."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Json,
        device: torch.device,
    ) -> None:
        """Wrap a network. Without a process group this process is the only worker."""
        deepspeed = _import(device)
        _join(deepspeed, device)
        self.stage = int(config["zero_optimization"]["stage"])
        self._deepspeed = deepspeed
        self.engine: Any = deepspeed.initialize(
            model=network, optimizer=optimizer, config=config, dist_init_required=False
        )[0]

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass of one micro-batch."""
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of one micro-batch; gradients are averaged over workers and added up over
        passes.
        """
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """After every micro-batch; updates the parameters after the last one of a batch."""
        self.engine.step()

    def set_rate(self, lr: float) -> None:
        """Learning rate of the next update."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def weights(self) -> dict[str, Tensor]:
        """A copy of all parameters and buffers, whole, on the CPU, the same on every worker."""
        module: nn.Module = self.engine.module
        parameters = list(module.parameters())
        gather: Any = (
            self._deepspeed.zero.GatheredParameters(parameters)
            if self.stage == 3
            else contextlib.nullcontext()
        )
        with gather:
            return {
                name: value.detach().to("cpu", copy=True)
                for name, value in module.state_dict().items()
            }

    def save(self, directory: Path, tag: str = "deepspeed") -> None:
        """This worker's part of the engine's state, under `directory/tag`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(str(directory), tag=tag)

    def load(self, directory: Path, tag: str = "deepspeed") -> None:
        """Continue from the merged parts of all workers.

        Raises:
            ConfigError: a part is missing or damaged, or the state is of another number of workers.
        """
        if not (directory / tag).is_dir():
            raise ConfigError(
                f"there is no training state in {directory / tag}; remove the run directory and "
                "start again"
            )
        try:
            self.engine.load_checkpoint(str(directory), tag=tag)
        except Exception as error:  # DeepSpeed raises whatever torch, zipfile and pickle raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"the training state in {directory / tag} is damaged, or of another number of "
                f"workers ({reason}); remove the run directory and start again"
            ) from error


def _join(deepspeed: Any, device: torch.device) -> None:
    dist: Any = torch.distributed
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
    )


def _import(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    deepspeed: Any = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Asked for one, DeepSpeed would probe a compiler for all of its operators, and build a
    # shared-memory all-reduce that training never calls: half a minute. We use none of them.
    vars(deepspeed.ops)["__compatible_ops__"] = defaultdict[str, bool](bool)
    return deepspeed


def partitioner(device: torch.device) -> Any:
    """The `deepspeed` module, ready to partition modules over the process group (ZeRO-3) without an
    engine: `deepspeed.zero.Init(module=…)` and `deepspeed.zero.GatheredParameters`.

    Without a process group this process is the only worker.
    """
    deepspeed = _import(device)
    _join(deepspeed, device)
    return deepspeed
