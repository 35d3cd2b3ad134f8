"""The floor: logistic regression on smoothed statistics. Below it nothing has been learnt.

Shapes: B rows, K statistics.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from infnet.model.base import BaseModel
from infnet.model.heads import Heads
from infnet.model.inputs import Inputs
from infnet.schema import Schema
from rayrun.config import ConfigError


class FloorConfig(BaseModel):
    """One linear layer per task over features of type `statistic`; no embeddings."""

    type: Literal["floor"] = "floor"
    statistics: Literal["own", "all"] = "own"
    """What a task's layer reads: the rates of its own label (all statistics where it has none), or
    all statistics. Counts and the rates of other tasks drift more than they tell on small logs."""
    gain: float = 10.0
    """Logits are gain · (w x + b): a step of Adam moves a coefficient by about lr · gain, so that
    this small convex problem is solved in as many steps as the big models take."""

    @model_validator(mode="after")
    def _gain_is_positive(self) -> "FloorConfig":
        if self.gain <= 0:
            raise ValueError(f"gain must be above 0, found {self.gain}")
        return self

    def build(self, schema: Schema) -> "Floor":
        """The network.

        Raises:
            ConfigError: no feature of type `statistic`.
        """
        return Floor(self, schema)

    def table_copies(self, schema: Schema) -> int:
        """No tables."""
        return 0


class Floor(nn.Module):
    """Starts at the mean of the task's own rates where statistics hold their logits, else at 0."""

    def __init__(self, config: FloorConfig, schema: Schema) -> None:
        super().__init__()
        starts = schema.dense_starts
        slots = [slot for slot in schema.dense if slot.kind == "statistic"]
        if not slots:
            raise ConfigError(
                "model floor needs at least one feature of type statistic, found none; add, for "
                "each task, `features.user_rate: {type: statistic, key: [USER COLUMN], value: "
                "task:NAME, outputs: [count, logit]}` and the same for the item"
            )
        columns = [starts[slot.name] + i for slot in slots for i in range(slot.width)]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.gain = config.gain
        self.heads = Heads(schema.tasks, len(columns))
        owners = [slot.task for slot in slots for _ in range(slot.width)]
        reads = torch.ones(len(schema.tasks), len(columns))
        if config.statistics == "own":
            for row, task in enumerate(schema.tasks):
                if task in owners:
                    reads[row] = torch.tensor([float(owner == task) for owner in owners])
        self.register_buffer("reads", reads, persistent=False)
        with torch.no_grad():
            for task, tower in zip(schema.tasks, self.heads.towers, strict=True):
                for parameter in tower.parameters():
                    parameter.zero_()
                rates = [i for i, s in enumerate(slots) if s.task == task and _is_logit(s.name)]
                if rates and schema.tasks[task].metrics[0] == "auc":
                    weight = next(tower.parameters())
                    weight[0, rates] = 1 / (self.gain * len(rates))

    def forward(self, inputs: Inputs) -> dict[str, Float[Tensor, "B _"]]:
        """Logits of every task."""
        statistics = inputs.dense.index_select(1, self.get_buffer("columns")) * self.gain
        return self.heads([statistics * reads for reads in self.get_buffer("reads")])


def _is_logit(name: str) -> bool:
    return name.endswith(".logit")
