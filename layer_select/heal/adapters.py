"""Low-rank changes of a decoder's matrices, and their merging (Hu et al. 2022, arXiv:2106.09685).

    W' = W + (alpha / r) B A      A: r × in, B: out × r, B = 0 at the start

Linear maps compute y + (alpha / r) B (A x), so that W' is never formed while they learn. Experts,
which some families keep together in one tensor [experts, ., .], have an A and a B each. Routers,
norms and embeddings stay as they are.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CHANGE = "low_rank"


class LowRank(nn.Module):
    """The change of one matrix, or of each in a stack."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        """`weight` is [out, in], or [experts, ., .] with either order of out and in."""
        super().__init__()
        *stack, outputs, inputs = weight.shape
        self.scale = scale
        kind = {"device": weight.device, "dtype": torch.float32}
        self.a = nn.Parameter(torch.empty(*stack, rank, inputs, **kind))
        self.b = nn.Parameter(torch.zeros(*stack, outputs, rank, **kind))
        nn.init.uniform_(self.a, -(inputs**-0.5), inputs**-0.5)

    def change(self) -> Tensor:
        """(alpha / r) B A."""
        return self.scale * (self.b @ self.a)

    def forward(self, x: Tensor) -> Tensor:
        """Of a linear map: (alpha / r) B (A x)."""
        return self.scale * ((x.to(self.a.dtype) @ self.a.T) @ self.b.T)


class _Stacked(LowRank):
    """As a parametrization of a stack of experts: W → W'."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change().to(x.dtype)


def attach(model: nn.Module, *, rank: int, alpha: float, seed: int) -> int:
    """Freeze a model and give every linear map of its layers, and every expert, a change to learn.

    Args:
        model: a causal language model of `transformers`.
        rank: r, cut to the smaller side of a matrix.
        alpha: see the top of the file.
        seed: of A.

    Returns:
        How many matrices (or stacks of them) learn.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    body: Any = cast(Any, model).get_decoder()
    found = 0
    for module in [m for block in body.layers for m in block.modules()]:
        if isinstance(module, nn.Linear):
            size = min(rank, *module.weight.shape)
            module.add_module(CHANGE, LowRank(module.weight, size, alpha / size))
            module.register_forward_hook(_add)
            found += 1
            continue
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() == 3:
                size = min(rank, *weight.shape[1:])
                parametrize.register_parametrization(
                    module, name, _Stacked(weight, size, alpha / size)
                )
                found += 1
    return found


def _add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + cast(Any, getattr(module, CHANGE))(inputs[0]).to(output.dtype)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put all changes into the weights: the model is an ordinary one again."""
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and hasattr(module, CHANGE):
            change = cast(LowRank, getattr(module, CHANGE)).change()
            module.weight += change.to(module.weight.dtype)
            delattr(module, CHANGE)
            for key in [k for k, hook in module._forward_hooks.items() if hook is _add]:
                del module._forward_hooks[key]
        elif parametrize.is_parametrized(module):
            names = [
                name
                for name, parts in cast(Any, module).parametrizations.items()
                if isinstance(parts[0], _Stacked)
            ]
            for name in names:
                parametrize.remove_parametrizations(module, name)
    model.requires_grad_(True)
