"""Workers of a torch.distributed process group: its collectives, and a host that needs no Ray.

Between CPUs the group is gloo, between GPUs NCCL.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayrun.ray.worker import keep_checkpoint, newest_checkpoint

dist: Any = torch.distributed  # its collectives carry no types


class Collectives:
    """The collectives of a `Worker`, of the default process group."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, value: Tensor) -> Tensor:
        """All-reduce of a copy of `value`."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """All-gather, padded to the longest part (the backends want equal shapes)."""
        if self.world_size == 1:
            return [rows]
        mine = torch.tensor([rows.shape[0]], device=rows.device)
        counts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(counts, mine)
        lengths = [int(count.item()) for count in counts]
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """All-to-all with unequal parts."""
        if self.world_size == 1:
            return rows
        found = rows.new_empty((sum(received), *rows.shape[1:]))
        dist.all_to_all_single(found, rows.contiguous(), [*received], [*sent])
        return found

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world_size > 1:
            dist.barrier()


class ProcessGroupWorker(Collectives):
    """A `Worker` of processes that somebody else started: torchrun, a batch system, a test.

    Checkpoints lie in a directory that all of them reach; whoever started the processes starts
    them again after a failure, in whatever number.
    """

    def __init__(self, directory: Path, device: torch.device | str = "cpu") -> None:
        """The process group is initialised; `directory` holds the checkpoints of this run."""
        self.rank, self.world_size = int(dist.get_rank()), int(dist.get_world_size())
        self.device = torch.device(device)
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def report(self, metrics: dict[str, float], checkpoint: Path | None = None) -> None:
        """Keep a checkpoint of the parts of all workers, if they are given."""
        if checkpoint is None:
            self.barrier()
            return
        half = self.directory / ".half"
        if self.rank == 0:
            shutil.rmtree(half, ignore_errors=True)  # of an attempt that ended in between
            half.mkdir()
        self.barrier()
        shutil.copytree(checkpoint, half, dirs_exist_ok=True)
        self.barrier()
        if self.rank == 0:
            keep_checkpoint(half, self.directory)
        self.barrier()

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint directory, or None."""
        return newest_checkpoint(self.directory)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Nothing is shown: whoever starts processes has its own display."""
