"""Angular distance between states of the residual stream: neighbours, and all pairs."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.importance.method import Found, Gathered, MethodConfig, Micro, Observer


class Angular(MethodConfig):
    """d(x_l, x_m) = E[arccos(cos(x_l, x_m))] / π (Gromov et al. 2024, arXiv:2403.17887), in [0, 1].

    The score of a layer is d(x_l, x_{l+1}); the matrix over all pairs, `pairs.angular`, tells which
    row of layers turns the stream least. Angles are taken per token and then averaged: the angle of
    the averaged cosines is another number. The last state is taken before the final norm, which
    `output_hidden_states` would have applied to it.
    """

    type: Literal["angular"] = "angular"
    tokens: Literal["last", "all"] = "last"
    """The last token of each sample, as in the paper, or the mean over all its real tokens."""

    def observer(self) -> Observer:
        """A fresh observer."""
        return _AngularObserver(self)


class _AngularObserver(Observer):
    def __init__(self, config: Angular) -> None:
        self.config = config

    def states(self, micro: Micro, states: Sequence[Float[Tensor, "B T D"]]) -> None:
        found: list[Tensor] = []
        for row in range(len(micro.sample)):
            # One sample at a time: its states in float64 are the largest thing here.
            if self.config.tokens == "last":
                stream = torch.stack([state[row, -1:] for state in states], 1)
            else:
                real = micro.mask[row].bool()
                stream = torch.stack([state[row][real] for state in states], 1)
            found.append(angular_distances(stream).mean(0))
        matrices = torch.stack(found)
        for layer in range(micro.num_layers):
            micro.put("angular", layer, matrices[:, layer, layer + 1])
        micro.totals["angular"] = matrices.sum(0).cpu()

    def found(self, gathered: Gathered) -> dict[str, Found]:
        matrix = gathered.totals["angular"].sum(0) / gathered.counts.sum()
        found = Found.mean(gathered.values["angular"])
        return {
            "angular": Found(found.scores, found.errors, found.samples, {}, {"angular": matrix})
        }


def angular_distances(stream: Float[Tensor, "T S D"]) -> Float[Tensor, "T S S"]:
    """Angles / π between the S states of each token, in float64: arccos near 1 halves the digits.

    Raises:
        ValueError: a state is zero.
    """
    exact = stream.double()
    lengths = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    if bool((lengths == 0).any()):
        raise ValueError(
            "hidden states must be non-zero at real tokens; a zero state has no direction: check "
            "the weights of the layer before it"
        )
    unit = exact / lengths
    angles = torch.arccos((unit @ unit.mT).clamp(-1, 1)) / math.pi
    return angles - torch.diag_embed(angles.diagonal(dim1=1, dim2=2))  # 0 to itself, exactly
