"""Diagonal Fisher information of a layer: how strongly the loss of single samples depends on it."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from layer_select.importance.method import (
    OBSERVED,
    BlockGradient,
    Found,
    Gathered,
    MethodConfig,
    Micro,
    Observer,
    Variant,
)


class Fisher(MethodConfig):
    """F(l) = (1/N) Σ_n Σ_{θ∈l} g_n², the trace of the diagonal Fisher information of layer l.

    g_n = ∂ℓ_n/∂θ, where ℓ_n is the loss of ONE sample, summed over its target tokens. The square is
    of each sample's gradient: the squared gradient of a batch is another number, and another order.
    """

    type: Literal["fisher"] = "fisher"
    monte_carlo: bool = False
    """Labels drawn from the model itself (the Fisher information proper) instead of the observed
    ones (the empirical Fisher)."""
    draws: PositiveInt = 1
    """Labels drawn per sample; the mean over them counts. Only with `monte_carlo`."""
    per_parameter: bool = False
    """Divide by the number of parameters of the layer, where layers are of several sizes."""
    seed: NonNegativeInt = 0
    """Of the drawn labels."""

    @property
    def keys(self) -> tuple[str, ...]:
        """`fisher`, or `fisher_monte_carlo`."""
        return ("fisher_monte_carlo" if self.monte_carlo else "fisher",)

    def observer(self) -> Observer:
        """A fresh observer."""
        return _FisherObserver(self)


class _FisherObserver(Observer):
    needs = frozenset({"backward", "squares"})

    def __init__(self, config: Fisher) -> None:
        self.config = config
        self.key = config.keys[0]
        self.variants: Sequence[Variant] = (
            tuple(Variant(config.seed, draw) for draw in range(config.draws))
            if config.monte_carlo
            else (OBSERVED,)
        )

    def gradient(self, micro: Micro, layer: int, found: BlockGradient) -> None:
        micro.put(f"{self.key}.{found.variant.draw}", layer, found.squares)

    def found(self, gathered: Gathered) -> dict[str, Found]:
        drawn = [gathered.values[f"{self.key}.{v.draw}"] for v in self.variants]
        rows = torch.stack(drawn).mean(0)
        if self.config.per_parameter:
            rows = rows / gathered.num_parameters
        return {self.key: Found.mean(rows)}
