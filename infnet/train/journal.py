"""Journal: what a run remembers besides its parameters, so that a resumed run goes on as if never
stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infnet.config import EarlyStopping
from infnet.tasks import BaseTask
from rayrun.config import ConfigError, Json
from rayrun.metrics import Metrics

FILE = "journal.json"
LOWER_IS_BETTER = frozenset({"logloss", "ne", "ece", "mae", "rmse", "loss"})


@dataclass
class Journal:
    """Where a run stands: the next row to read, and the best evaluation so far."""

    identity: Json
    """Digests of the configuration and schema; a state of another run is refused."""
    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    steps: int = 0
    """Steps done in all."""
    best_score: float | None = None
    """Mean of the watched metric at the best evaluation; None: not defined yet."""
    best_step: int = -1
    best_metrics: Metrics = field(default_factory=dict)
    without_improvement: int = 0
    """Evaluations since the best one."""
    stopped_early: bool = False

    def stepped(self, steps_per_epoch: int) -> None:
        """One optimizer step is done."""
        self.steps += 1
        self.step += 1
        if self.step == steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0

    def evaluated(
        self, metrics: Metrics, tasks: Mapping[str, BaseTask], stopping: EarlyStopping | None
    ) -> bool:
        """Remember an evaluation; True if it is the best so far.

        While the watched metric is defined nowhere (one class only, no validation rows), the newest
        counts as the best.
        """
        score = watched_score(metrics, tasks, stopping)
        margin = stopping.min_delta if stopping else 0.0
        if score is None:
            better = self.best_score is None
        else:
            better = self.best_score is None or score > self.best_score + margin
        if better:
            self.best_score, self.best_step, self.best_metrics = score, self.steps, metrics
            self.without_improvement = 0
        else:
            self.without_improvement += 1
            if stopping and self.without_improvement >= stopping.patience:
                self.stopped_early = True
        return better

    def write(self, directory: Path) -> None:
        """Write `journal.json`."""
        (directory / FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def restore(self, directory: Path) -> None:
        """Take over what a checkpoint says.

        Raises:
            ConfigError: damaged, or of another run.
        """
        path = directory / FILE
        try:
            saved = Journal(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is missing or damaged ({error}); remove the run directory and start again"
            ) from error
        for name, value in self.identity.items():
            if saved.identity.get(name) != value:
                raise ConfigError(
                    f"the training state in {directory} has {name} {saved.identity.get(name)}, "
                    f"this run has {value}; give the run another --out, or restore what it was "
                    "started with"
                )
        self.__dict__.update(saved.__dict__)


def watched_metric(task: BaseTask, stopping: EarlyStopping | None) -> str:
    """The metric of a task that decides which checkpoint is best: the headline, unless early
    stopping names one.
    """
    return stopping.metric if stopping else task.metrics[0]


def watched_score(
    metrics: Metrics, tasks: Mapping[str, BaseTask], stopping: EarlyStopping | None
) -> float | None:
    """Mean of the watched metric over the tasks that have it, signed so that more is better; None
    if none has.
    """
    values: list[float] = []
    for name, task in tasks.items():
        metric = watched_metric(task, stopping)
        value = metrics.get(name, {}).get(metric)
        if value is not None:
            values.append(-value if metric in LOWER_IS_BETTER else value)
    return sum(values) / len(values) if values else None


def check_watched(tasks: Mapping[str, BaseTask], stopping: EarlyStopping | None) -> None:
    """Early stopping watches a metric that some task has.

    Raises:
        ConfigError: none has it.
    """
    known = sorted({metric for task in tasks.values() for metric in task.metrics})
    if stopping and stopping.metric not in known:
        raise ConfigError(
            "train.early_stopping.metric must be a metric of one of the tasks "
            f"({', '.join(known)}), found {stopping.metric!r}"
        )
