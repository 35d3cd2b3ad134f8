"""The classic online stack: DIN reads histories, DCNv2 crosses features, PLE serves the tasks.

Shapes: B rows, D_f width of field f, K dense columns.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from infnet.baselines.blocks.cross import CrossNetwork, LowRankCrossNetwork
from infnet.baselines.blocks.din import TargetAttention
from infnet.baselines.blocks.ple import ProgressiveLayeredExtraction
from infnet.model.base import BaseModel
from infnet.model.heads import Heads
from infnet.model.inputs import Inputs
from infnet.schema import Schema, SequenceSlot
from rayrun.config import Config, ConfigError


class FullCross(Config):
    """A full matrix per layer."""

    type: Literal["full"] = "full"

    def build(self, dim: int, num_layers: int) -> nn.Module:
        """The cross network."""
        return CrossNetwork(dim, num_layers)


class LowRankCross(Config):
    """A mixture of low-rank experts per layer: cheaper where the input is wide."""

    type: Literal["low_rank"] = "low_rank"
    rank: int = 32
    num_experts: int = 4

    @model_validator(mode="after")
    def _sizes_are_possible(self) -> "LowRankCross":
        if self.rank < 1 or self.num_experts < 1:
            raise ValueError(
                f"rank and num_experts must be at least 1, found {self.rank} and {self.num_experts}"
            )
        return self

    def build(self, dim: int, num_layers: int) -> nn.Module:
        """The cross network."""
        return LowRankCrossNetwork(dim, num_layers, rank=self.rank, num_experts=self.num_experts)


Cross = Annotated[FullCross | LowRankCross, Field(discriminator="type")]


class OnlineStackConfig(BaseModel):
    """DIN + DCNv2 + PLE, the online baseline of the INFNet paper."""

    type: Literal["online_stack"] = "online_stack"
    target_fields: tuple[str, ...] = ()
    """Fields that describe the candidate, the query of every history. Empty: the fields its events
    carry."""
    attention_hidden: tuple[int, ...] = (64,)
    attention_softmax: bool = False
    cross: Cross = LowRankCross()
    """INFNet's paper compares with the low-rank mixture."""
    cross_layers: int = 3
    ple_layers: int = 2
    specific_experts: int = 1
    """Experts of each task, in each layer."""
    shared_experts: int = 1
    expert_hidden: tuple[int, ...] = (256, 128)
    """Widths of an expert; its output is the last one."""
    head_hidden: tuple[int, ...] = (64,)
    dropout: float = 0.0
    """After hidden layers of the attention and the heads, and on the input of the experts."""

    @model_validator(mode="after")
    def _sizes_are_possible(self) -> "OnlineStackConfig":
        for name in ("cross_layers", "ple_layers", "specific_experts", "shared_experts"):
            if (found := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, found {found}")
        for name in ("attention_hidden", "expert_hidden"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(
                    f"{name} must hold one or more widths of at least 1, found {widths}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), found {self.dropout}")
        return self

    def build(self, schema: Schema) -> "OnlineStack":
        """The network, freshly initialised.

        Raises:
            ConfigError: a history without a target to look at it with, or no feature at all.
        """
        return OnlineStack(self, schema)


class OnlineStack(nn.Module):
    """x_0 = [fields ‖ dense ‖ DIN of each history]; logits_i = MLP_i(PLE_i(Cross(x_0)))."""

    def __init__(self, config: OnlineStackConfig, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        widths = {slot.name: schema.tables[slot.table].dim for slot in schema.fields}
        self.targets = {
            slot.name: _target_fields(slot, config.target_fields, widths)
            for slot in schema.sequences
        }
        event_widths = {
            slot.name: sum(schema.tables[table].dim for table in slot.tables)
            for slot in schema.sequences
        }
        self.queries = nn.ModuleList(
            nn.Identity()
            if self.targets[slot.name] == slot.fields
            else nn.Linear(sum(widths[f] for f in self.targets[slot.name]), event_widths[slot.name])
            for slot in schema.sequences
        )
        self.attentions = nn.ModuleList(
            TargetAttention(
                event_widths[slot.name],
                hidden=config.attention_hidden,
                dropout=config.dropout,
                softmax=config.attention_softmax,
            )
            for slot in schema.sequences
        )
        dim = sum(widths.values()) + schema.dense_width + sum(event_widths.values())
        if not dim:
            raise ConfigError("features: model online_stack needs at least one feature, found none")
        self.cross = config.cross.build(dim, config.cross_layers)
        self.dropout = nn.Dropout(config.dropout)
        self.ple = ProgressiveLayeredExtraction(
            dim,
            num_tasks=len(schema.tasks),
            num_layers=config.ple_layers,
            num_specific=config.specific_experts,
            num_shared=config.shared_experts,
            hidden=config.expert_hidden,
        )
        self.heads = Heads(
            schema.tasks,
            config.expert_hidden[-1],
            hidden=config.head_hidden,
            dropout=config.dropout,
        )

    def forward(self, inputs: Inputs) -> dict[str, Float[Tensor, "B _"]]:
        """Logits of every task."""
        interests: list[Tensor] = []
        modules = zip(self.schema.sequences, self.queries, self.attentions, strict=True)
        for slot, query, attention in modules:
            target = torch.cat([inputs.fields[f] for f in self.targets[slot.name]], dim=1)
            events, valid = inputs.sequences[slot.name], inputs.valid[slot.name]
            interests.append(attention(query(target), events, valid))
        x0 = torch.cat([*inputs.fields.values(), inputs.dense, *interests], dim=1)
        return self.heads(self.ple(self.dropout(self.cross(x0))))


def _target_fields(
    slot: SequenceSlot, wanted: tuple[str, ...], widths: dict[str, int]
) -> tuple[str, ...]:
    if missing := [name for name in wanted if name not in widths]:
        raise ConfigError(
            f"model.target_fields must name categorical features {sorted(widths)}, found {missing}"
        )
    target = wanted or tuple(name for name in slot.fields if name in widths)
    if not target:
        raise ConfigError(
            f"features.{slot.name}: none of its event fields {list(slot.fields)} is a feature of "
            f"the candidate; set model.target_fields to some of {sorted(widths)}"
        )
    return target
