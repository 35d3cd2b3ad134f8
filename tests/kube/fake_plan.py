"""What happens to a job in the simulated cluster: when pods start, what a job prints, what goes wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = Any

# Words of several bytes, for whoever counts bytes, and of several code units.
WORDS = ("loss", "naïve", "推荐", "🚂", "batch")


@dataclass
class Submission:
    """One run of the job's command on one head."""

    lines: int = 20
    every_s: float = 1.0
    """Between two lines."""
    outcome: str = "SUCCEEDED"
    """SUCCEEDED, FAILED, or "" for a job that never ends."""
    exit_code: int = 1
    """Of FAILED."""
    head_lost_s: float | None = None
    """The head is gone so long after the submission; another one is started, on the same cluster."""
    worker_oom_s: float | None = None
    """A worker reaches its memory limit so long after the submission."""
    unread_s: tuple[tuple[float, float], ...] = ()
    """When the dashboard answers no question for the log: seconds after the begin."""
    tail_drops_s: tuple[float, ...] = ()
    """When connections that follow the log are cut."""

    def text(self, name: str, after_s: float) -> str:
        """All that was printed until then; a line comes in two pieces."""
        done = min(self.lines, int(after_s / self.every_s))
        found = "".join(f"{self.line(name, i)}\n" for i in range(done))
        if done < self.lines and after_s / self.every_s - done >= 0.5 and after_s < self.lasts_s:
            found += self.line(name, done)[: len(name) + 3 + done % 9]
        return found

    def line(self, name: str, i: int) -> str:
        return f"[{name}] {i} {WORDS[i % len(WORDS)]} 损失={1 / (i + 1):.3f}"

    @property
    def lasts_s(self) -> float:
        return self.lines * self.every_s + 0.5 if self.outcome else float("inf")


@dataclass
class Start:
    """Why pods do not run at first, or ever."""

    kind: str = ""
    """image, unschedulable, quota; empty: they run."""
    until_s: float = float("inf")
    """After the first attempt it is mended so much later."""
    role: str = "head"
    """head or worker: whose pods."""


@dataclass
class Plan:
    """The fate of every job of a simulated cluster."""

    submissions: list[Submission] = field(default_factory=lambda: [Submission()])
    """In order; the last one holds for all that come after it."""
    pod_starts_s: float = 4.0
    queued_s: float = 0.0
    """Of jobs with a queue of Kueue: how long it suspends them."""
    start: Start = field(default_factory=Start)
    slow_delete_s: float = 0.0
    """How long finalizers of others hold RayClusters and pods that are deleted."""
    pending_s: float = 1.0
    """How long a submitted job is PENDING."""
    on_end: Callable[[Json, Submission, str], None] | None = None
    """Called with the RayJob's request, the submission and its status when a job ends: what a real
    command would leave at its output."""

    def submission(self, count: int) -> Submission:
        """The `count`-th, from 0."""
        return self.submissions[min(count, len(self.submissions) - 1)]
