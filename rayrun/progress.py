"""One progress display for every long verb, on stderr: a bar on a terminal, else lines."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """Progress that moves forward."""

    def advance(self, n: float = 1, note: str = "") -> None:
        """Count `n` more units; `note` is a few words about now (`loss .43`)."""
        ...

    def expect(self, total: float) -> None:
        """There are `total` units in all, as is known by now."""
        ...


@contextmanager
def progress(total: float | None, label: str, unit: str = "steps") -> Generator[Bar]:
    """Show how far a long loop is.

    Args:
        total: units in all; None if not known.
        label: what is being done, `training`.
        unit: of what is counted, `steps`, `rows`.
    """
    if sys.stderr.isatty():
        yield from _on_terminal(total, label, unit)
        return
    lines = _Lines(total, label, unit)
    try:
        yield lines
    finally:
        lines.end()


def _on_terminal(total: float | None, label: str, unit: str) -> Generator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=False,
    )
    with display:
        task = display.add_task(label, total=total, unit=unit, note="", count="0")
        yield _Rich(display, task, total)


class _Rich:
    def __init__(self, display: Any, task: Any, total: float | None) -> None:
        self.display = display
        self.task = task
        self.total = total
        self.done = 0.0

    def advance(self, n: float = 1, note: str = "") -> None:
        self.done += n
        shown: dict[str, Any] = {"note": note} if note else {}
        count = _count(self.done, self.total)
        self.display.update(self.task, advance=n, count=count, **shown)

    def expect(self, total: float) -> None:
        self.total = total
        self.display.update(self.task, total=total, count=_count(self.done, total))


class _Lines:
    def __init__(self, total: float | None, label: str, unit: str) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = 0.0
        self.note = ""
        self.started = self.printed = time.monotonic()
        self.printed_at = -1.0

    def advance(self, n: float = 1, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        if time.monotonic() - self.printed >= SECONDS_BETWEEN_LINES:
            self.line()

    def expect(self, total: float) -> None:
        self.total = total

    def line(self) -> None:
        self.printed = time.monotonic()
        self.printed_at = self.done
        elapsed = self.printed - self.started
        parts = [f"{self.label}: {_count(self.done, self.total)} {self.unit}"]
        if self.total:
            parts[0] += f" ({self.done / self.total:.0%})"
        parts.append(f"{_duration(elapsed)} elapsed")
        if self.total and 0 < self.done < self.total:
            parts.append(f"{_duration(elapsed * (self.total - self.done) / self.done)} left")
        if self.note:
            parts.append(self.note)
        print(", ".join(parts), file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.done != self.printed_at:
            self.line()


def _count(done: float, total: float | None) -> str:
    return f"{done:,.0f}" + (f"/{total:,.0f}" if total is not None else "")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
