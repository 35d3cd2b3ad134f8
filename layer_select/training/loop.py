"""The training loop, against a `Worker`: it runs alone, on Ray Train, anywhere.

Every worker makes the rows of an epoch alike and learns its share of each batch; gradients are
summed. A run that is resumed takes the same steps as one that was not interrupted.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layer_select.training.learner import Batch, Learner
from layer_select.training.plain import Plain
from layer_select.training.schedule import Schedule
from layer_select.training.stepper import Stepper, damaged
from rayrun.config import ConfigError, Json
from rayrun.ray.precision import check_bf16
from rayrun.ray.worker import Worker

PROGRESS = "progress.json"
LOG_EVERY_STEPS = 20


@dataclass
class Progress:
    """Where a run is."""

    epoch: int = 0
    step: int = 0
    """Within the epoch."""
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Of this attempt and those before it, as far as they were kept."""
    recent: list[float] | None = None
    """Sums of the losses of `since` steps, which no entry of the journal tells yet."""
    since: int = 0


def fit(
    worker: Worker, schedule: Schedule, learner: Learner, rows_of: Callable[[int], Batch]
) -> Json:
    """Train `learner`; continue where the worker's newest checkpoint stopped.

    Args:
        worker: of the run.
        schedule: how long, and at what rate.
        learner: what is trained; holds the result afterwards (with ZeRO 3 too).
        rows_of: all rows of an epoch by its number, in order, the same on every worker.

    Returns:
        `steps`, `tokens` (without padding, over all workers), `train_s` and `started_at` of this
        attempt, `seconds` of all attempts, `micro_rows` where memory made it smaller, and
        `losses`, a list of [step, loss, loss, …].

    Raises:
        ConfigError: a loss that is not finite, bf16 without hardware, a damaged checkpoint, one row
            that a GPU's memory has no room for, or rows that ZeRO cannot share out evenly.
    """
    started = time.monotonic()
    device = worker.device
    if schedule.precision == "bf16":
        check_bf16(device, f"{schedule.section}.precision")
    learner.bf16 = schedule.precision == "bf16"
    learner.to(device)
    stepper = _stepper(worker, schedule, learner)
    at, journal = Progress(), list[list[float]]()
    if newest := worker.latest_checkpoint():
        at, journal = _restore(newest, stepper)
    started_at, before, rows = at.steps, at.seconds, rows_of(at.epoch)
    recent = torch.tensor(at.recent or [0.0] * len(learner.names), device=device)
    since = at.since
    over = _finished(schedule, at, len(rows))
    while not over:
        batches = math.ceil(len(rows) / schedule.batch_rows)
        total = schedule.steps or batches * schedule.epochs
        for step in range(at.step, batches):
            batch = rows[slice(step * schedule.batch_rows, (step + 1) * schedule.batch_rows)]
            done = (
                at.steps / total
                if schedule.steps
                else (at.epoch + step / batches) / schedule.epochs
            )
            recent += stepper.step(batch, schedule.rate(done))
            since += 1
            at.step, at.steps = step + 1, at.steps + 1
            at.tokens += batch.num_tokens
            over = _finished(schedule, at, len(rows))
            if over or at.steps % LOG_EVERY_STEPS == 0:
                journal.append([float(at.steps), *_finite(schedule, learner, recent / since, at)])
                recent, since = torch.zeros_like(recent), 0
            worker.progress(at.steps, total, _note(learner, journal, stepper))
            if over or at.steps % schedule.checkpoint_every_steps == 0:
                at.seconds = before + time.monotonic() - started
                at.recent, at.since = recent.tolist(), since
                _save(worker, stepper, at, journal)
            if over:
                break
        if not over:
            at.epoch, at.step = at.epoch + 1, 0
            rows = rows_of(at.epoch)
    stepper.finish()
    return {
        "steps": at.steps,
        "tokens": at.tokens,
        "started_at": started_at,
        "train_s": time.monotonic() - started,
        "seconds": before + time.monotonic() - started,
        "micro_rows": stepper.halved_to,
        "losses": journal,
    }


def _stepper(worker: Worker, schedule: Schedule, learner: Learner) -> Stepper:
    if not schedule.zero_stage:
        return Plain(worker, schedule, learner)
    from layer_select.training.zero import Zero

    return Zero(worker, schedule, learner)


def _finished(schedule: Schedule, at: Progress, rows: int) -> bool:
    if schedule.steps:
        return at.steps >= schedule.steps
    batches = math.ceil(rows / schedule.batch_rows)
    return at.epoch >= schedule.epochs or (at.epoch + 1 == schedule.epochs and at.step >= batches)


def _finite(schedule: Schedule, learner: Learner, losses: Tensor, at: Progress) -> list[float]:
    found = losses.tolist()
    for name, loss in zip(learner.names, found, strict=True):
        if not math.isfinite(loss):
            section = schedule.section
            raise ConfigError(
                f"the {schedule.title} loss {name} must be finite, found {loss} by step "
                f"{at.steps}; lower {section}.lr or {section}.clip_norm"
            )
    return found


def _note(learner: Learner, journal: list[list[float]], stepper: Stepper) -> str:
    told = [
        f"{name.replace('_', ' ')} {loss:.2f}"
        for name, loss in zip(learner.names[:2], journal[-1][1:] if journal else (), strict=False)
    ]
    if stepper.halved_to:
        told.append(f"{stepper.halved_to} rows at once, memory has no room for more")
    return ", ".join(told)


def _save(worker: Worker, stepper: Stepper, at: Progress, journal: list[list[float]]) -> None:
    with tempfile.TemporaryDirectory(prefix="state-") as folder:
        stepper.save(Path(folder))
        if worker.rank == 0:
            text = json.dumps({"at": vars(at), "journal": journal})
            (Path(folder) / PROGRESS).write_text(text, encoding="utf-8")
        worker.report({"steps": float(at.steps)}, Path(folder))


def _restore(folder: Path, stepper: Stepper) -> tuple[Progress, list[list[float]]]:
    stepper.load(folder)
    place = folder / PROGRESS
    try:
        state: Any = json.loads(place.read_text(encoding="utf-8"))
        return Progress(**state["at"]), state["journal"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(place, error) from error
