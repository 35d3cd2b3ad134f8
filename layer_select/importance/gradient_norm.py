"""Gradient norm of a layer."""

from typing import Literal

from layer_select.importance.method import (
    BlockGradient,
    Found,
    Gathered,
    MethodConfig,
    Micro,
    Observer,
)


class GradientNorm(MethodConfig):
    """GN(l) = (1/N) Σ_n |g_n|₂ over the parameters of layer l, g_n the gradient of one sample.

    Not the root of the Fisher information: GN² ≤ F by Jensen's inequality.
    """

    type: Literal["gradient_norm"] = "gradient_norm"

    def observer(self) -> Observer:
        """A fresh observer."""
        return _GradientNormObserver()


class _GradientNormObserver(Observer):
    needs = frozenset({"backward", "squares"})

    def gradient(self, micro: Micro, layer: int, found: BlockGradient) -> None:
        micro.put("gradient_norm", layer, found.squares.sqrt())

    def found(self, gathered: Gathered) -> dict[str, Found]:
        return {"gradient_norm": Found.mean(gathered.values["gradient_norm"])}
