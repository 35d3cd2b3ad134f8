"""Worker: what a training loop may ask of whoever runs it. The loop is written against this and
knows no Ray.

Three hosts implement it: one process alone (`SingleWorker`, here), Ray Train
(`rayrun.ray.train.RayWorker`) and bare processes of torch.distributed
(`rayrun.ray.process_group.ProcessGroupWorker`).
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rayrun.metrics import peak_memory

KEPT_CHECKPOINTS = 2
"""A run keeps its newest checkpoints: the last, and one more should a disk lose it."""


@runtime_checkable
class Worker(Protocol):
    """One of `world_size` equal processes of a run."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all workers, the same on each. A collective: all must call it."""
        ...

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """`rows` of every worker, in rank order; first axes may differ. A collective."""
        ...

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Rows for each worker: the first `sent[0]` for worker 0, the next `sent[1]` for 1, ….

        Returns the `received[i]` rows that worker i had for this one, in rank order; both sides
        know the numbers. An all-to-all, a collective.
        """
        ...

    def barrier(self) -> None:
        """Wait until all workers are here."""
        ...

    def report(self, metrics: dict[str, float], checkpoint: Path | None = None) -> None:
        """Report a step; `checkpoint` is a local directory with this worker's part (same step on
        all ranks).

        A barrier for all workers. The parts of all ranks are merged into one checkpoint directory;
        when the call returns, the local directory may be deleted.
        """
        ...

    def latest_checkpoint(self) -> Path | None:
        """Local path of the newest complete checkpoint of this run, or None: start from the
        beginning.
        """
        ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the work is; cheap, may be called at every step, only rank 0 is shown."""
        ...


class SingleWorker:
    """One process alone: collectives are the identity, checkpoints lie in a local directory.

    A checkpoint appears under its final name only when it is complete; the newest two are kept.
    """

    rank = 0
    world_size = 1

    def __init__(self, directory: Path, device: torch.device | str = "cpu") -> None:
        """`directory` holds the checkpoints of this run, and of earlier attempts at it."""
        self.directory = Path(directory)
        self.device = torch.device(device)
        self.directory.mkdir(parents=True, exist_ok=True)

    def sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """The rows themselves."""
        return [rows]

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """The rows themselves."""
        return rows

    def barrier(self) -> None:
        """There is nobody to wait for."""

    def report(self, metrics: dict[str, float], checkpoint: Path | None = None) -> None:
        """Keep a copy of the checkpoint directory, if one is given."""
        if checkpoint is None:
            return
        with tempfile.TemporaryDirectory(prefix=".half-", dir=self.directory) as half:
            copy = Path(half) / "checkpoint"
            shutil.copytree(checkpoint, copy)
            keep_checkpoint(copy, self.directory)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint directory, or None."""
        return newest_checkpoint(self.directory)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Nothing is shown: whoever runs a loop in its own process has its own display."""


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint in a directory of them, or None."""
    kept = _checkpoints(directory)
    return kept[-1] if kept else None


def keep_checkpoint(whole: Path, directory: Path) -> None:
    """Move a complete checkpoint under its final name; the newest `KEPT_CHECKPOINTS` stay."""
    kept = _checkpoints(directory)
    number = int(kept[-1].name.split("_")[1]) + 1 if kept else 0
    whole.rename(directory / f"checkpoint_{number:06d}")
    for old in _checkpoints(directory)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint_*"))


def peak_memory_of(worker: Worker) -> int:
    """Most bytes this process has held: of the GPU where it works on one, else of the host."""
    if worker.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(worker.device))
    return peak_memory()
