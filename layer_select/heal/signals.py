"""Signal: one thing a teacher says about rows, as it is kept in a cache.

Shapes: N positions (tokens without padding, or ends of titles that have a next item), K kept.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from layer_select.heal.recommender import Seen
from layer_select.pretrain.texts import NONE, Rows

At = Literal["tokens", "ends"]


def positions(rows: Rows, at: At) -> Bool[Tensor, "R T"]:
    """Where a signal is heard."""
    return rows.text > 0 if at == "tokens" else rows.items != NONE


class Signal(ABC):
    """Named by all that decides it beside teacher and rows."""

    at: At

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the folder in a cache."""

    @abstractmethod
    def read(self, teacher: Seen) -> dict[str, Tensor]:
        """Columns of N rows each."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the teacher, whose outputs are read."""
        return ()


@dataclass(frozen=True)
class TopTokens(Signal):
    """The most likely next tokens."""

    top_k: int
    temperature: float
    at: At = "tokens"

    @property
    def name(self) -> str:
        """See `Signal`."""
        return f"tokens-{self.top_k}-{self.temperature:g}"

    def read(self, teacher: Seen) -> dict[str, Tensor]:
        """See `top`."""
        return top(teacher.logits, self.top_k, self.temperature)


@dataclass(frozen=True)
class TopItems(Signal):
    """The best items."""

    top_k: int
    temperature: float
    at: At = "ends"

    @property
    def name(self) -> str:
        """See `Signal`."""
        return f"items-{self.top_k}-{self.temperature:g}"

    def read(self, teacher: Seen) -> dict[str, Tensor]:
        """See `top`."""
        return top(teacher.scores, self.top_k, self.temperature)


@dataclass(frozen=True)
class After(Signal):
    """The residual stream after a block of the teacher."""

    layer: int
    at: At = "tokens"

    @property
    def name(self) -> str:
        """See `Signal`."""
        return f"after-{self.layer}"

    @property
    def layers(self) -> tuple[int, ...]:
        """The one."""
        return (self.layer,)

    def read(self, teacher: Seen) -> dict[str, Tensor]:
        """`hidden`."""
        return {"hidden": teacher.after[self.layer][positions(teacher.rows, self.at)].float()}


def top(logits: Float[Tensor, "N V"], top_k: int, temperature: float) -> dict[str, Tensor]:
    """The K = min(top_k, V) largest of softmax(logits / T), and what is left.

    Returns:
        `ids` int64 [N, K]; `known` log-probabilities [N, K]; `rest` [N], the logarithm of the mass
        of all others (−∞ where there are none).
    """
    chances = (logits / temperature).log_softmax(-1)
    known, ids = chances.topk(min(top_k, chances.shape[-1]), sorted=False)
    return {"ids": ids, "known": known, "rest": rest_of(chances, ids)}


def rest_of(values: Float[Tensor, "N V"], ids: Int64[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Logarithm of Σ exp over all but `ids`; −∞, without gradient, where these are all."""
    if ids.shape[-1] == values.shape[-1]:
        return values.new_full(values.shape[:1], -torch.inf)
    return values.scatter(-1, ids, -torch.inf).logsumexp(-1)
