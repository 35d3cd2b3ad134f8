"""Taylor importance of a gate on each layer: what leaving the layer out would change."""

from typing import Literal

from layer_select.importance.method import (
    BlockGradient,
    Found,
    Gathered,
    MethodConfig,
    Micro,
    Observer,
)


class GateTaylor(MethodConfig):
    """I(l) = −E⟨∂ℓ/∂x_{l+1}, x_{l+1} − x_l⟩, the first-order prediction of ℓ(without l) − ℓ.

    It is −∂ℓ/∂a_l at a = 1 of a gate x_{l+1} = x_l + a_l (f_l(x_l) − x_l), where a_l = 0 leaves the
    layer out (gates on heads: Michel et al. 2019, arXiv:1905.10650, who take its size). Signed, in
    the unit of the loss; it costs one backward pass and no weight gradient.
    """

    type: Literal["gate_taylor"] = "gate_taylor"

    def observer(self) -> Observer:
        """A fresh observer."""
        return _GateObserver()


class _GateObserver(Observer):
    needs = frozenset({"backward"})

    def gradient(self, micro: Micro, layer: int, found: BlockGradient) -> None:
        step = found.after.double() - found.before.double()
        micro.put("gate_taylor", layer, -(found.upstream.double() * step).sum(dim=(1, 2)))

    def found(self, gathered: Gathered) -> dict[str, Found]:
        return {"gate_taylor": Found.mean(gathered.values["gate_taylor"])}
