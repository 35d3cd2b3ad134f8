"""Progress over the tensors of a model, where there is enough to read to wait for."""

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from layer_select.sources.checkpoint import Info
from rayrun.progress import Bar, progress

WORTH_SHOWING = 1 << 28
"""Bytes; below, reading takes a moment."""


@contextmanager
def reading(label: str, tensors: Iterable[Info], steps: int) -> Generator[Bar]:
    """A bar of `steps` tensors; nothing is shown for a small model."""
    if sum(math.prod(info.shape) * info.dtype.itemsize for info in tensors) < WORTH_SHOWING:
        yield _Silent()
        return
    with progress(steps, label, "tensors") as bar:
        yield bar


class _Silent:
    def advance(self, n: float = 1, note: str = "") -> None:
        """Show nothing."""

    def expect(self, total: float) -> None:
        """Show nothing."""
