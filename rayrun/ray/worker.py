"""Worker: what a training loop may ask of whoever runs it. The loop is written against this and knows no Ray.

Three hosts implement it: one process alone (`SingleWorker`, here), Ray Train (`rayrun.ray.train`), torchrun.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


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

    def barrier(self) -> None:
        """Wait until all workers are here."""
        ...

    def report(self, metrics: dict[str, float], checkpoint: Path | None = None) -> None:
        """Report a step; `checkpoint` is a local directory with this worker's part (same step on all ranks).

        A barrier for all workers. The parts of all ranks are merged into one checkpoint directory; when the
        call returns, the local directory may be deleted.
        """
        ...

    def latest_checkpoint(self) -> Path | None:
        """Local path of the newest complete checkpoint of this run, or None: start from the beginning."""
        ...
