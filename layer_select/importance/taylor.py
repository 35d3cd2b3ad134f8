"""First-order Taylor importance of a layer's weights: what setting them to zero would change."""

from typing import Literal

from layer_select.importance.method import (
    BlockGradient,
    Found,
    Gathered,
    MethodConfig,
    Micro,
    Need,
    Observer,
)


class Taylor(MethodConfig):
    """T1(l) = (1/N) Σ_n Σ_{θ∈l} |g_n θ|, and T2(l) = Σ_{θ∈l} |Σ_n g_n θ| (Kim et al. 2024,
    arXiv:2402.02834, "Taylor").

    T1, under the key `taylor`, takes the size of each sample's product. T2, `taylor_signed`, lets
    samples cancel before the size is taken, so T2 ≤ N·T1; it needs one number per parameter on the
    host (two, for the error). T2 is no mean over samples: its standard error is half the difference
    of what the even and the odd micro-batches give, a rough figure of one degree of freedom.
    """

    type: Literal["taylor"] = "taylor"
    signed: bool = True
    """Also T2, with 16 bytes per parameter of the blocks on the host."""

    @property
    def keys(self) -> tuple[str, ...]:
        """`taylor`, and `taylor_signed` where asked for."""
        return ("taylor", "taylor_signed") if self.signed else ("taylor",)

    def observer(self) -> Observer:
        """A fresh observer."""
        return _TaylorObserver(self)


class _TaylorObserver(Observer):
    def __init__(self, config: Taylor) -> None:
        needs: set[Need] = {"backward", "absolutes"}
        if config.signed:
            needs.add("products")
        self.needs = frozenset(needs)

    def gradient(self, micro: Micro, layer: int, found: BlockGradient) -> None:
        micro.put("taylor", layer, found.absolutes)

    def found(self, gathered: Gathered) -> dict[str, Found]:
        found = {"taylor": Found.mean(gathered.values["taylor"])}
        if gathered.signed is not None and gathered.signed_all is not None:
            even, odd = (gathered.counts[half::2].sum() for half in (0, 1))
            errors = (gathered.signed[0] * 0).clone()
            if even and odd:
                halves = gathered.signed / (gathered.signed.new_tensor([[even], [odd]]))
                errors = (halves[0] - halves[1]).abs() / 2 * gathered.counts.sum()
            found["taylor_signed"] = Found(gathered.signed_all, errors)
        return found
