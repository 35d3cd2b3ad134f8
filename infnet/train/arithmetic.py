"""Batch arithmetic: from the global batch size to the rows of one forward pass. Nothing is ever
rounded.
"""

from typing import NamedTuple


class BatchArithmetic(NamedTuple):
    """How a global batch is spread: `batch_size` = workers × accumulation × micro_batch_size."""

    batch_size: int
    """Rows per optimizer step over all workers."""
    workers: int
    micro_batch_size: int
    """Rows per forward pass of one worker."""
    accumulation: int
    """Forward passes of one worker per optimizer step."""
    lanes: int
    """Streams that the training rows are read in."""

    def __str__(self) -> str:
        return (
            f"{self.batch_size} rows per step = {self.workers} workers × {self.accumulation} "
            f"passes × {self.micro_batch_size} rows, read in {self.lanes} lanes"
        )


def batch_arithmetic(
    *, batch_size: int, workers: int, micro_batch_size: int | None, lanes: int
) -> BatchArithmetic:
    """The exact division of a global batch among workers, passes and lanes.

    Raises:
        ValueError: something does not divide; the message names the nearest number that does.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("micro_batch_size", micro_batch_size),
        ("lanes", lanes),
    ):
        if value is not None and value < 1:
            raise ValueError(f"train.{name} must be at least 1, found {value}")
    if lanes % workers:
        raise ValueError(
            f"train.lanes ({lanes}) must be a multiple of compute.workers ({workers}); "
            f"the nearest is {_nearest(lanes, workers)}"
        )
    if batch_size % lanes:
        raise ValueError(
            f"train.batch_size ({batch_size}) must be a multiple of train.lanes ({lanes}); "
            f"the nearest is {_nearest(batch_size, lanes)}"
        )
    micro = batch_size // workers if micro_batch_size is None else micro_batch_size
    if batch_size % (per_pass := workers * micro):
        raise ValueError(
            f"batch_size ({batch_size}) must be a multiple of workers × micro_batch_size "
            f"({workers} × {micro} = {per_pass}); the nearest is {_nearest(batch_size, per_pass)}"
        )
    return BatchArithmetic(batch_size, workers, micro, batch_size // per_pass, lanes)


def _nearest(value: int, divisor: int) -> int:
    return max(1, (value + divisor // 2) // divisor) * divisor
