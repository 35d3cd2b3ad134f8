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
from infnet.schema import DenseSlot, Schema
from rayrun.config import ConfigError


class FloorConfig(BaseModel):
    """One linear layer per task over features of type `statistic`; no embeddings."""

    type: Literal["floor"] = "floor"
    statistics: Literal["own", "all"] = "own"
    """What a task's layer reads: the rates of its own label (all statistics where it has none), or
    all statistics. Counts and the rates of other tasks drift more than they tell on small logs."""
    gain: float = 30.0
    """Logits are w · (gain z ‖ gain) + b with z the standardised statistics: a step of Adam moves a
    coefficient by about lr · gain, so that this small convex problem is solved in as many steps as
    the big models take."""

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

    def shares_histories(self) -> bool:
        """It reads none."""
        return True


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
        self.register_buffer(
            "columns", torch.tensor([starts[slot.name] for slot in slots]), persistent=False
        )
        means = torch.tensor([slot.mean for slot in slots])
        deviations = torch.tensor([slot.deviation for slot in slots])
        reads = [_reads(slots, task, config.statistics) for task in schema.tasks]
        self.register_buffer("reads", torch.tensor(reads), persistent=False)
        self.gain = config.gain
        self.heads = Heads(schema.tasks, len(slots) + 1)
        with torch.no_grad():
            for task, tower in zip(schema.tasks, self.heads.towers, strict=True):
                weight, bias = tower.parameters()
                weight.zero_()
                bias.zero_()
                rates = [i for i, s in enumerate(slots) if s.task == task and _is_logit(s.name)]
                if rates and schema.tasks[task].metrics[0] == "auc":
                    share = 1 / (self.gain * len(rates))
                    weight[0, rates] = share * deviations[rates]
                    weight[0, -1] = share * means[rates].sum()

    def forward(self, inputs: Inputs) -> dict[str, Float[Tensor, "B _"]]:
        """Logits of every task."""
        z = inputs.dense.index_select(1, self.get_buffer("columns"))
        z = self.gain * torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        return self.heads([z * reads for reads in self.get_buffer("reads")])


def _reads(slots: list[DenseSlot], task: str, statistics: str) -> list[float]:
    """1 for each statistic that the layer of a task reads, and for the constant at the end."""
    own = [float(slot.task == task) for slot in slots]
    return [*own, 1.0] if statistics == "own" and any(own) else [1.0] * (len(slots) + 1)


def _is_logit(name: str) -> bool:
    return name.endswith(".logit")
