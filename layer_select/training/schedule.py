"""Schedule: how long is trained, in what steps, at what rate."""

import math
from dataclasses import dataclass
from typing import Literal

LAST_RATE = 0.1
"""Share of the highest rate at the end of the cosine."""


@dataclass(frozen=True)
class Schedule:
    """Read from a section of the configuration; see there for what each value means."""

    section: str
    """Key of that section, for messages."""
    title: str
    """What is going on, for messages: `pretraining`."""
    epochs: int
    batch_rows: int
    lr: float
    warmup: float
    weight_decay: float
    clip_norm: float
    precision: Literal["fp32", "bf16"]
    checkpoint_every_steps: int
    steps: int = 0
    """0: those of `epochs`."""
    micro_rows: int = 0
    """0: all rows of a worker in one pass."""
    zero_stage: int = 0

    def rate(self, done: float) -> float:
        """Linear warm-up, then a cosine (Loshchilov and Hutter 2017) down to a tenth.

        `done` is the share of the training that lies behind, in [0, 1].
        """
        if done < self.warmup:
            return self.lr * (done + 1e-3) / (self.warmup + 1e-3)
        part = (done - self.warmup) / (1 - self.warmup)
        return self.lr * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * part)))
