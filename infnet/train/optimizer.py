"""Optimizers of the dense parameters, and the learning-rate schedule of a run.

The embedding tables have their own, in `infnet.train.rows`.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from infnet.config import Optimizer


def dense_optimizer(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """Adam, AdamW or Adagrad in two groups: matrices decay, vectors and scalars (biases, norms) do
    not.

    `weight_decay` is decoupled in AdamW (Loshchilov & Hutter 2019) and an L2 gradient λ·θ in the
    two others.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
    }
    return kinds[config.type]([g for g in groups if g["params"]], lr=config.lr)


def schedule_factor(config: Optimizer, step: int, total_steps: int) -> float:
    """What the learning rates of step `step` (from 0) are multiplied by, in (0, 1].

    Warm-up rises linearly: (step + 1) / warmup_steps. `cosine` then falls as ½(1 + cos πp), p being
    the share of the steps after the warm-up that is done; the last step still has a rate above 0.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
