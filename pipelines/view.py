"""What a person sees while a pipeline runs: a table on a terminal, else lines."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

Show = Callable[[Mapping[str, Any]], None]
"""Show the steps as they are now: `rayrun.run_record.Step` by name."""

SECONDS_BETWEEN_LINES = 10.0

LOOK = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "cached": ("✓", "blue"),
    "failed": ("✗", "bold red"),
    "skipped": ("–", "dim"),
}
WORDS = {"done": "ran"}


@contextlib.contextmanager
def view(title: str) -> Generator[Show]:
    """A display on stderr for the length of the block."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=8, transient=False) as live:
        yield lambda steps: live.update(_table(title, steps))


def seconds_of(step: Any) -> float:
    """How long a step has taken so far."""
    if step.state == "running" and step.began:
        return max(0.0, time.time() - step.began)
    return step.seconds


def duration(seconds: float) -> str:
    """`7.3 s`, `2 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


def _table(title: str, steps: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, expand=True)
    table.add_column("step", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=9)
    table.add_column("time", justify="right", no_wrap=True, min_width=11)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for step in steps.values():
        sign, style = LOOK[step.state]
        spent = "" if step.state in ("waiting", "skipped") else duration(seconds_of(step))
        said = step.line if step.state in ("running", "failed") else ""
        table.add_row(
            Text(f"{sign} {step.name}", style=style),
            Text(WORDS.get(step.state, step.state), style=style),
            spent,
            Text(said, style="red" if step.state == "failed" else "dim"),
        )
    return table


class _Lines:
    """One line when a step starts or ends, and now and then what it says."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.said: dict[str, str] = {}
        self.said_at = 0.0

    def __call__(self, steps: Mapping[str, Any]) -> None:
        for name, step in steps.items():
            if step.state != self.states.get(name, "waiting"):
                self._changed(step)
            elif step.state == "running" and step.line != self.said.get(name, step.line):
                if time.monotonic() - self.said_at >= SECONDS_BETWEEN_LINES:
                    self._say(f"{name}: {step.line}")
                else:
                    continue
            self.states[name] = step.state
            self.said[name] = step.line

    def _changed(self, step: Any) -> None:
        if step.state == "running":
            self._say(f"{step.name}: running")
        elif step.state == "skipped":
            self._say(f"{step.name}: skipped")
        elif step.state == "failed":
            self._say(f"{step.name}: failed after {duration(step.seconds)}")
        elif step.state == "cached":
            self._say(f"{step.name}: cached ({duration(step.seconds)})")
        else:
            self._say(f"{step.name}: done in {duration(step.seconds)}")

    def _say(self, line: str) -> None:
        self.said_at = time.monotonic()
        print(line, file=sys.stderr, flush=True)
