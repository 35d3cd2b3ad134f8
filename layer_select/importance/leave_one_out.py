"""Leave-one-out: what the task loses when a single layer is skipped.

Shapes: L layers, N samples.
"""

from typing import TYPE_CHECKING, Literal

import torch

from layer_select.importance.method import Found, MethodConfig

if TYPE_CHECKING:
    from layer_select.coalitions import Coalitions


class LeaveOneOut(MethodConfig):
    """LOO(l) = ℓ(M − l) − ℓ(M): mean increase of a sample's loss when layer l is the identity.

    In the unit of the loss; below 0 where the task is better off without the layer. The hidden
    states before l are those of the full model, so all L values take L (L − 1) / 2 runs of a block
    beside the L of the full model.
    """

    type: Literal["leave_one_out"] = "leave_one_out"

    def by_removal(self, coalitions: "Coalitions") -> dict[str, Found]:
        """Scores by key, with the value of each sample."""
        layers = range(coalitions.num_layers)
        without = {left_out: [i for i in layers if i != left_out] for left_out in layers}
        coalitions.evaluate([layers, *without.values()])
        full = coalitions.losses(layers)
        increases = [coalitions.losses(kept) - full for kept in without.values()]
        told = {"loss": float(full.mean())}
        return {"leave_one_out": Found.mean(torch.stack(increases, dim=1), told)}
