"""INFNet v1: information flow between categorical, sequence and task tokens through a few proxies.

Feature interaction in time linear in the number of tokens: tokens never attend to tokens of another
kind, only proxies (and task tokens) do; what proxies gather gates the tokens of their kind.
arXiv:2508.11565v1.

    C, S, T    tokens          one per field, per event, per task             tokens.py
    C̃, S̃, T̃    proxies         m, k per behaviour type, N_s shared tokens      proxies.py
    N blocks   heterogeneous   proxies and task tokens read the other kinds    flow.py
               homogeneous     proxies gate the tokens of their kind (PGU)     pgu.py
    logits     MLP_i(T_i)      one head per task on the last block's output    heads.py

Shapes: B rows, K dense columns, D token width.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from infnet.model.base import BaseModel
from infnet.model.block import Block, PguSource
from infnet.model.flow import HeterogeneousFlow
from infnet.model.gated import GatedTokens, repeat
from infnet.model.heads import Heads
from infnet.model.inputs import Inputs
from infnet.model.pgu import HomogeneousFlow
from infnet.model.proxies import FlattenedProxies, Proxies, SequenceProxies
from infnet.model.tokens import FeatureTokens, SequenceTokens, TaskTokens, Tokens
from infnet.schema import Schema
from rayrun.config import Config, ConfigError


class SharedTaskProxies(Config):
    """T̃ = the shared tokens alone, as in the paper."""

    type: Literal["shared"] = "shared"


class PooledTaskProxies(Config):
    """T̃ = [shared tokens ‖ `count` proxies that an MLP pools from all task tokens]."""

    type: Literal["pooled"] = "pooled"
    count: int = 2


TaskProxies = Annotated[SharedTaskProxies | PooledTaskProxies, Field(discriminator="type")]


class INFNetConfig(BaseModel):
    """INFNet v1. Where the paper leaves a choice open, it is a setting and the default is ours."""

    type: Literal["infnet"] = "infnet"
    token_dim: int = 64
    """D. Fields of another width are projected to it."""
    num_blocks: int = 3
    """N ≥ 2: with one block the heads never see a categorical or sequence proxy."""
    num_heads: int = 1
    """Attention heads; the paper writes one."""
    num_categorical_proxies: int = 4
    """m."""
    num_sequence_proxies: int = 1
    """k, per behaviour type (k·F in all). The paper has one by construction, and reports 4 in all.
    """
    num_shared_tokens: int = 2
    """N_s."""
    task_proxies: TaskProxies = SharedTaskProxies()
    shared_init: Literal["normal", "task_tokens"] = "normal"
    """Shared tokens start as N(0, 0.02²), or as copies of the task tokens."""
    pgu_source: PguSource = "post"
    """Gate with the proxies after (`post`) or before (`pre`) the attention of the same block."""
    residual: bool = True
    """Add what went in, on proxies and tokens."""
    layer_norm: bool = False
    """Normalise proxies and tokens after each half of a block."""
    proxy_hidden: tuple[int, ...] = (256,)
    """Hidden layers of φ_cat (and of the pooled task proxies)."""
    gate_hidden: tuple[int, ...] = (64,)
    """Hidden layers of each PGU's MLP."""
    head_hidden: tuple[int, ...] = (64,)
    """Hidden layers of each task's MLP."""
    dropout: float = 0.0
    """After every hidden layer of the MLPs above."""

    @model_validator(mode="after")
    def _counts_are_possible(self) -> "INFNetConfig":
        if self.num_blocks < 2:
            raise ValueError(
                f"num_blocks must be at least 2, found {self.num_blocks}: with one block "
                "no output reads the categorical and sequence proxies"
            )
        if self.num_heads < 1 or self.token_dim % self.num_heads:
            raise ValueError(
                f"token_dim ({self.token_dim}) must be a multiple of num_heads ({self.num_heads})"
            )
        counts = {
            "token_dim": self.token_dim,
            "num_categorical_proxies": self.num_categorical_proxies,
            "num_sequence_proxies": self.num_sequence_proxies,
            "num_shared_tokens": self.num_shared_tokens,
        }
        if isinstance(self.task_proxies, PooledTaskProxies):
            counts["task_proxies.count"] = self.task_proxies.count
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, found {count}")
        for name in ("proxy_hidden", "gate_hidden", "head_hidden"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(
                    f"{name} must hold widths of at least 1, found {getattr(self, name)}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), found {self.dropout}")
        return self

    def build(self, schema: Schema) -> "INFNet":
        """The network, freshly initialised.

        Raises:
            ConfigError: the schema has no categorical, numeric or pretrained feature.
        """
        return INFNet(self, schema)

    def shares_histories(self) -> bool:
        """A normalisation makes tokens of a history that differ from row to row; else yes."""
        return not self.layer_norm


class INFNet(nn.Module):
    """Read `forward` first: it is the paper, line by line."""

    def __init__(self, config: INFNetConfig, schema: Schema) -> None:
        super().__init__()
        dim = config.token_dim
        num_tokens = len(schema.fields) + len(schema.dense)
        if not num_tokens:
            raise ConfigError(
                "features: INFNet needs at least one feature that is not a sequence, found only "
                f"{[slot.name for slot in schema.sequences]}; add a categorical or numeric one"
            )
        self.schema = schema

        # Tokens
        self.field_tokens = FeatureTokens(
            {slot.name: schema.tables[slot.table].dim for slot in schema.fields}, dim, keep_dim=True
        )
        self.dense_tokens = FeatureTokens(
            {slot.name: slot.width for slot in schema.dense}, dim, keep_dim=False
        )
        self.sequence_tokens = nn.ModuleList(
            SequenceTokens(
                sum(schema.tables[table].dim for table in slot.tables),
                dim,
                max_length=slot.max_length,
                positions=slot.positions,
                decay=slot.decay,
            )
            for slot in schema.sequences
        )
        self.task_tokens = TaskTokens(
            len(schema.tasks),
            config.num_shared_tokens,
            dim,
            shared_from_tasks=config.shared_init == "task_tokens",
        )

        # Proxies
        self.categorical_proxies = FlattenedProxies(
            num_tokens,
            config.num_categorical_proxies,
            dim,
            hidden=config.proxy_hidden,
            dropout=config.dropout,
        )
        self.sequence_proxies = (
            SequenceProxies(
                dim, config.num_sequence_proxies, [slot.pooling for slot in schema.sequences]
            )
            if schema.sequences
            else None
        )
        self.pooled_task_proxies = (
            FlattenedProxies(
                len(schema.tasks),
                config.task_proxies.count,
                dim,
                hidden=config.proxy_hidden,
                dropout=config.dropout,
            )
            if isinstance(config.task_proxies, PooledTaskProxies)
            else None
        )

        # Flow
        num_proxies = {
            "categorical": config.num_categorical_proxies,
            "sequence": config.num_sequence_proxies * len(schema.sequences),
            "task": config.num_shared_tokens,
        }
        if isinstance(config.task_proxies, PooledTaskProxies):
            num_proxies["task"] += config.task_proxies.count
        num_proxies = {kind: number for kind, number in num_proxies.items() if number}
        self.blocks = nn.ModuleList(
            _block(config, num_proxies, blocks_after=config.num_blocks - 1 - index)
            for index in range(config.num_blocks)
        )

        # Heads
        self.heads = Heads(schema.tasks, dim, hidden=config.head_hidden, dropout=config.dropout)

    def forward(self, inputs: Inputs) -> dict[str, Float[Tensor, "B _"]]:
        """Logits of every task."""
        tokens, proxies = self.initial(inputs)
        for block in self.blocks:
            tokens, proxies = block(tokens, proxies)
        return self.heads(tokens.task.gated.unbind(dim=1))

    def initial(self, inputs: Inputs) -> tuple[Tokens, Proxies]:
        """C^(0), S^(0), T^(0) and C̃^(0), S̃^(0), T̃^(0)."""
        dense = dict(
            zip(
                self.schema.dense_starts,
                inputs.dense.split([slot.width for slot in self.schema.dense], dim=1),
                strict=True,
            )
        )
        categorical = torch.cat([*self.field_tokens(inputs.fields), *self.dense_tokens(dense)], 1)
        task, shared = self.task_tokens(categorical)

        valid = [inputs.valid[slot.name] for slot in self.schema.sequences]
        events = [
            tokens(inputs.sequences[slot.name], inputs.valid[slot.name], inputs.ages[slot.name])
            for slot, tokens in zip(self.schema.sequences, self.sequence_tokens, strict=True)
        ]
        nothing = categorical[:, :0]
        tokens = Tokens(
            categorical=GatedTokens(categorical),
            sequence=GatedTokens(torch.cat(events, dim=1), valid=torch.cat(valid, dim=1))
            if events
            else GatedTokens(nothing),
            task=GatedTokens(task),
        )
        proxies = Proxies(
            categorical=self.categorical_proxies(categorical),
            sequence=repeat(self.sequence_proxies(events, valid), categorical)
            if self.sequence_proxies
            else nothing,
            task=shared
            if self.pooled_task_proxies is None
            else torch.cat([shared, self.pooled_task_proxies(task)], dim=1),
        )
        return tokens, proxies


def _block(config: INFNetConfig, num_proxies: dict[str, int], *, blocks_after: int) -> Block:
    """A block with only the parts that reach an output; the heads read T alone.

    The last block builds the task path only. With `pgu_source: pre` its gate uses T̃ from before,
    so it does not update T̃ either; and C̃, S̃ are not updated in the block before it, whose update
    only the last block's missing gates would have read.
    """
    look_ahead = 0 if config.pgu_source == "post" else 1
    kinds = tuple(num_proxies)
    readers = ["task"]
    if blocks_after >= look_ahead:
        readers.append("task_proxies")
    if blocks_after > look_ahead:
        readers += [kind for kind in kinds if kind != "task"]
    gated = num_proxies if blocks_after else {"task": num_proxies["task"]}
    return Block(
        HeterogeneousFlow(
            config.token_dim,
            config.num_heads,
            kinds=kinds,
            readers=readers,
            residual=config.residual,
            layer_norm=config.layer_norm,
        ),
        HomogeneousFlow(
            gated,
            config.token_dim,
            hidden=config.gate_hidden,
            dropout=config.dropout,
            residual=config.residual,
            layer_norm=config.layer_norm,
        ),
        pgu_source=config.pgu_source,
    )
