"""How concentrated a layer's attention is. Descriptive: it says nothing of the task."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from layer_select.importance.attention_rows import Attended, spread_rows
from layer_select.importance.method import Found, Gathered, MethodConfig, Micro, Observer


class AttentionConcentration(MethodConfig):
    """C(l) = E_{heads, rows}[1 − H / ln n], H = −Σ_j a_j ln a_j over the n ≥ 2 keys a row may see.

    In [0, 1]: uniform attention gives 0, a single key 1. Sliding windows count the keys inside,
    padding none, and learned sinks (gpt-oss) are left out by renormalising. Attention to the first
    tokens, where models park what they do not need, inflates it: `…_without_sinks` leaves the first
    keys out too. The mean is over heads and rows of a sample, then over samples. The weights of
    `rows` rows are recomputed from queries and keys: heads × rows × T numbers at a time.
    """

    type: Literal["attention_concentration"] = "attention_concentration"
    sinks: NonNegativeInt = 4
    """First tokens that the second score leaves out; 0: there is no second score."""
    rows: PositiveInt = 128
    """Query rows of a sample that are measured, evenly spaced; of a shorter one all."""

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

    def attention(self, micro: Micro, layer: int, attended: Attended) -> None:
        place = micro.mask.cumsum(1)  # 1 for the first real token
        left_out = dict(zip(self.config.keys, (0, self.config.sinks), strict=False))
        found: dict[str, list[Tensor]] = {key: [] for key in left_out}
        for sample in range(len(micro.mask)):  # one at a time: memory for one is enough
            rows = spread_rows(micro.mask[sample], self.config.rows)
            weights, visible = attended.rows(sample, rows)
            for key, sinks in left_out.items():
                found[key].append(concentration(weights, visible & (place[sample] > sinks)))
        for key, values in found.items():
            micro.put(key, layer, torch.stack(values))

    def found(self, gathered: Gathered) -> dict[str, Found]:
        return {key: Found.mean(gathered.values[key]) for key in self.config.keys}


def concentration(
    weights: Float[Tensor, "H R T"],
    visible: Bool[Tensor, "R T"],
) -> Float[Tensor, ""]:
    """C of a sample, over the visible keys alone; rows that see fewer than two do not count.

    Nor do rows that give all of them together no weight at all.

    Raises:
        ValueError: no row counts.
    """
    kept = weights.double() * visible
    mass = kept.sum(-1)
    count = visible.sum(-1).expand_as(mass)
    counts = (count >= 2) & (mass > 0)
    if not bool(counts.any()):
        raise ValueError(
            "attention concentration needs samples with at least two visible tokens beyond the "
            f"sinks, found one whose rows see at most {int(visible.sum(-1).max())}; set "
            "attention_concentration.sinks: 0, or use longer histories"
        )
    share = kept / mass.where(counts, 1.0)[..., None]
    entropy = -torch.special.xlogy(share, share).sum(-1)
    values = 1 - entropy / count.clamp(min=2).double().log()
    return values[counts].mean().clamp(0, 1)
