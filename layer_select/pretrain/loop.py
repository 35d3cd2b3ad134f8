"""Training the small decoder, against a `Worker`: it runs alone, on Ray Train, anywhere.

Every worker makes the rows of an epoch alike and learns its share of each batch; gradients are
summed. A run that is resumed takes the same steps as one that was not interrupted.
"""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layer_select.pretrain.config import Pretrain
from layer_select.pretrain.student import LOSSES, Student, target_counts
from layer_select.pretrain.texts import Rows, TextMaker
from rayrun.config import ConfigError, Json
from rayrun.ray.precision import check_bf16
from rayrun.ray.worker import Worker

STATE = "state.pt"
LOG_EVERY_STEPS = 20
LAST_RATE = 0.1
"""Share of the highest rate at the end of the cosine."""


@dataclass
class Progress:
    """Where a run is."""

    epoch: int = 0
    step: int = 0
    """Within the epoch."""
    steps: int = 0
    tokens: int = 0


def fit(worker: Worker, config: Pretrain, student: Student, maker: TextMaker) -> Json:
    """Train `student`; continue where the worker's newest checkpoint stopped.

    Returns:
        `steps`, `tokens` (without padding, over all workers), `train_s` and `started_at` of this
        attempt, and `losses`, a list of [step, next item, next token, answer].

    Raises:
        ConfigError: a loss that is not finite, bf16 without hardware, a damaged checkpoint.
    """
    started = time.monotonic()
    device = worker.device
    if config.precision == "bf16":
        check_bf16(device, "pretrain.precision")
    student.to(device).train()
    optimizer = torch.optim.AdamW(_groups(student, config.weight_decay), lr=config.lr, eps=1e-8)
    at, journal = Progress(), list[list[float]]()
    if newest := worker.latest_checkpoint():
        at, journal = _restore(newest, student, optimizer)
    started_at, rows = at.steps, maker.rows(at.epoch)
    recent = torch.zeros(len(LOSSES), device=device)
    since = 0
    while at.epoch < config.epochs:
        batches = math.ceil(len(rows) / config.batch_rows)
        for step in range(at.step, batches):
            batch = rows[slice(step * config.batch_rows, (step + 1) * config.batch_rows)]
            done = (at.epoch + step / batches) / config.epochs
            recent += _step(worker, config, student, optimizer, batch, _rate(config, done))
            since += 1
            at.step, at.steps = step + 1, at.steps + 1
            at.tokens += int((batch.text > 0).sum())
            last = at.step == batches and at.epoch + 1 == config.epochs
            if last or at.steps % LOG_EVERY_STEPS == 0:
                journal.append([float(at.steps), *_finite(recent / since, at.steps)])
                recent, since = torch.zeros_like(recent), 0
            worker.progress(at.steps, batches * config.epochs, _note(journal))
            if last or at.steps % config.checkpoint_every_steps == 0:
                _save(worker, student, optimizer, at, journal)
        at.epoch, at.step = at.epoch + 1, 0
        if at.epoch < config.epochs:
            rows = maker.rows(at.epoch)
    return {
        "steps": at.steps,
        "tokens": at.tokens,
        "started_at": started_at,
        "train_s": time.monotonic() - started,
        "losses": journal,
    }


def _step(
    worker: Worker,
    config: Pretrain,
    student: Student,
    optimizer: torch.optim.Optimizer,
    batch: Rows,
    rate: float,
) -> Tensor:
    """One optimizer step; the losses of the whole batch, the same on every worker."""
    counts = target_counts(batch).to(worker.device)
    share = -(-len(batch) // worker.world_size)
    mine = batch[slice(worker.rank * share, (worker.rank + 1) * share)]
    parameters = [p for p in student.parameters() if p.requires_grad]
    losses = torch.zeros(len(LOSSES), device=worker.device)
    if len(mine):
        bf16 = config.precision == "bf16"
        with torch.autocast(worker.device.type, torch.bfloat16, enabled=bf16):
            losses = student.losses(mine.to(worker.device), counts)
        student.weighted(losses).backward()
    if worker.world_size > 1:
        _share_gradients(worker, parameters)
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return worker.sum(losses.detach())


def _share_gradients(worker: Worker, parameters: list[torch.nn.Parameter]) -> None:
    """Sum gradients over the workers; one that had no rows takes part with zeros."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = worker.sum(torch.cat([g.flatten() for g in grads]))
    for parameter, part in zip(
        parameters, total.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)


def _groups(student: Student, decay: float) -> list[Json]:
    """Weight decay on matrices of the blocks alone: not on embeddings, norms, P."""
    body: Any = student.model.get_decoder()
    inside = {id(p) for p in body.layers.parameters() if p.dim() > 1}
    parameters = list(student.parameters())
    return [
        {"params": [p for p in parameters if id(p) in inside], "weight_decay": decay},
        {"params": [p for p in parameters if id(p) not in inside], "weight_decay": 0.0},
    ]


def _rate(config: Pretrain, done: float) -> float:
    """Linear warm-up, then a cosine (Loshchilov and Hutter 2017) down to a tenth."""
    if done < config.warmup:
        return config.lr * (done + 1e-3) / (config.warmup + 1e-3)
    part = (done - config.warmup) / (1 - config.warmup)
    return config.lr * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * part)))


def _finite(losses: Tensor, step: int) -> list[float]:
    found = losses.tolist()
    for name, loss in zip(LOSSES, found, strict=True):
        if not math.isfinite(loss):
            raise ConfigError(
                f"the pretraining loss {name} must be finite, found {loss} by step {step}; lower "
                "pretrain.lr or pretrain.clip_norm"
            )
    return found


def _note(journal: list[list[float]]) -> str:
    return f"next item {journal[-1][1]:.2f}, next token {journal[-1][2]:.2f}" if journal else ""


def _save(
    worker: Worker,
    student: Student,
    optimizer: torch.optim.Optimizer,
    at: Progress,
    journal: list[list[float]],
) -> None:
    with tempfile.TemporaryDirectory(prefix="state-") as folder:
        if worker.rank == 0:
            state = {
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "at": vars(at),
                "journal": journal,
            }
            torch.save(state, Path(folder) / STATE)
        worker.report({"steps": float(at.steps)}, Path(folder))


def _restore(
    folder: Path, student: Student, optimizer: torch.optim.Optimizer
) -> tuple[Progress, list[list[float]]]:
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["at"]), state["journal"]
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ConfigError(
            f"the training state {folder / STATE} is damaged or of another model "
            f"({str(error).splitlines()[0]}); remove it and start again"
        ) from error
