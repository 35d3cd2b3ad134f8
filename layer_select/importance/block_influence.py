"""Block Influence: how much a layer turns the residual stream."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from layer_select.importance.method import Found, Gathered, MethodConfig, Micro, Observer


class BlockInfluence(MethodConfig):
    """BI(l) = 1 − E[cos(x_l, x_{l+1})] (Men et al. 2024, arXiv:2403.03853), in [0, 2].

    The mean is over the real tokens of each sample, then over samples; the paper, with packed text,
    has no padding and averages over tokens.
    """

    type: Literal["block_influence"] = "block_influence"

    def observer(self) -> Observer:
        """A fresh observer."""
        return _BlockInfluenceObserver()


class _BlockInfluenceObserver(Observer):
    def states(self, micro: Micro, states: Sequence[Float[Tensor, "B T D"]]) -> None:
        for layer in range(micro.num_layers):
            found = block_influence(states[layer], states[layer + 1], micro.mask)
            micro.put("block_influence", layer, found)

    def found(self, gathered: Gathered) -> dict[str, Found]:
        return {"block_influence": Found.mean(gathered.values["block_influence"])}


def block_influence(
    before: Float[Tensor, "B T D"], after: Float[Tensor, "B T D"], mask: Int64[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """1 − mean cosine over the real tokens of each sample, in float64.

    Raises:
        ValueError: a sample has no real token, or a hidden state of one is zero.
    """
    before, after, real = before.double(), after.double(), mask.bool()
    lengths = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    if bool((lengths[real] == 0).any()) or not bool(real.any(1).all()):
        raise ValueError(
            "hidden states must be non-zero at real tokens, and every sample must have one; a zero "
            "state has no direction: check the weights of the layer before it"
        )
    cosine = ((before * after).sum(-1) / lengths.where(real, 1.0)).clamp(-1, 1)
    return 1 - (cosine * real).sum(1) / real.sum(1)
