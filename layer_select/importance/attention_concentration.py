"""How concentrated a layer's attention is. Descriptive: it says nothing of the task."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import NonNegativeInt
from torch import Tensor

from layer_select.importance.method import Found, Gathered, MethodConfig, Micro, Observer


class AttentionConcentration(MethodConfig):
    """C(l) = E_{heads, rows}[1 − H / ln n], H = −Σ_j a_j ln a_j over the n ≥ 2 keys a row may see.

    In [0, 1]: uniform attention gives 0, a single key 1. Sliding windows count the keys inside,
    padding none, and learned sinks (gpt-oss) are left out by renormalising. Attention to the first
    tokens, where models park what they do not need, inflates it: `…_without_sinks` leaves the first
    keys out too. The mean is over heads and rows of a sample, then over samples. Needs the weights
    themselves (eager attention): heads × T² numbers per sample.
    """

    type: Literal["attention_concentration"] = "attention_concentration"
    sinks: NonNegativeInt = 4
    """First tokens that the second score leaves out; 0: there is no second score."""

    @property
    def keys(self) -> tuple[str, ...]:
        """`attention_concentration`, and `attention_concentration_without_sinks`."""
        first = "attention_concentration"
        return (first, f"{first}_without_sinks") if self.sinks else (first,)

    def observer(self) -> Observer:
        """A fresh observer."""
        return _AttentionObserver(self)


class _AttentionObserver(Observer):
    needs = frozenset({"attention"})

    def __init__(self, config: AttentionConcentration) -> None:
        self.config = config

    def attention(
        self,
        micro: Micro,
        layer: int,
        weights: Float[Tensor, "B H T T"],
        visible: Bool[Tensor, "B 1 T T"],
    ) -> None:
        place = micro.mask.cumsum(1)  # 1 for the first real token
        for key, sinks in zip(self.config.keys, (0, self.config.sinks), strict=False):
            keys = visible & (place > sinks)[:, None, None, :]
            micro.put(key, layer, concentration(weights, keys, micro.mask))

    def found(self, gathered: Gathered) -> dict[str, Found]:
        return {key: Found.mean(gathered.values[key]) for key in self.config.keys}


def concentration(
    weights: Float[Tensor, "B H T T"],
    visible: Bool[Tensor, "B 1 T T"],
    mask: Int64[Tensor, "B T"],
) -> Float[Tensor, " B"]:
    """C of each sample, over the visible keys alone; rows that see fewer than two do not count.

    Nor do rows that give all of them together no weight at all.

    Raises:
        ValueError: a sample has no row that counts.
    """
    found: list[Tensor] = []
    for row in range(len(weights)):  # in float64 one sample at a time is enough
        keys = visible[row]
        kept = weights[row].double() * keys
        mass = kept.sum(-1)
        count = keys.sum(-1).expand_as(mass)
        counts = (count >= 2) & (mass > 0) & mask[row].bool()
        if not bool(counts.any()):
            raise ValueError(
                "attention concentration needs samples with at least two visible tokens beyond the "
                f"sinks, found one of {int(mask[row].sum())} tokens; set "
                "attention_concentration.sinks: 0, or use longer histories"
            )
        share = kept / mass.where(counts, 1.0)[..., None]
        entropy = -torch.special.xlogy(share, share).sum(-1)
        values = 1 - entropy / count.clamp(min=2).double().log()
        found.append(values[counts].mean())
    return torch.stack(found).clamp(0, 1)
