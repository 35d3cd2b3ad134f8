"""A linear map of a block's MLP output, carried by the weights that make this output.

    MLP(x) = W h(x) + b      MLP(x) A + c, in rows:   W' = Aᵀ W     b' = Aᵀ b + c

A mixture of experts is a sum Σ_e w_e (W_e h_e + b_e): A goes to every expert, and c as well where
the w_e sum to one. Where a norm stands between `down_proj` and the residual stream (Gemma 2 and 3)
no change of `down_proj` is a linear map of what the block adds: there it cannot fold.

Shapes: D hidden width, F width inside the MLP, E experts. All is computed in float64.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from layer_select.families import family_of
from layer_select.sources.checkpoint import Checkpoint, Info
from layer_select.sources.view import View
from rayrun.config import ConfigError

DENSE = "mlp.down_proj.weight"
DENSE_BIAS = "mlp.down_proj.bias"
EXPERTS = "mlp.experts.down_proj"
EXPERTS_BIAS = "mlp.experts.down_proj_bias"
CARRIERS = (DENSE, DENSE_BIAS, EXPERTS, EXPERTS_BIAS)
_NORM_AFTER = ("gemma2", "gemma3_text")
_BIASED = ("llama", "gpt_oss")
_TRANSPOSED = "gpt_oss"
"""Stores experts as h W, [E, F, D]; all others as W h, [E, D, F]."""


@dataclass(frozen=True)
class LinearMap:
    """M ↦ M A + c on rows M, outputs of an MLP."""

    matrix: Float64[Tensor, "D D"]
    bias: Float64[Tensor, " D"] | None = None


def refuse_unfoldable(config: Any) -> None:
    """Raise unless a map can fold into this family's weights.

    Raises:
        ConfigError: a norm after `down_proj`, or an unknown family.
    """
    kind = family_of(config).model_type
    if kind in _NORM_AFTER:
        raise ConfigError(
            f"gaps of a {kind} model cannot be repaired by a map folded into down_proj: its "
            "blocks have a norm after down_proj (post_feedforward_layernorm), which would undo and "
            "bend the map; set compact.repair: {type: none} and heal the model instead"
        )


def carries_bias(config: Any) -> bool:
    """Whether the family's `down_proj` can have a bias (in llama by `mlp_bias: true`)."""
    return config.model_type in _BIASED


def fold(name: str, tensor: Tensor, found: LinearMap, model_type: str) -> Float[Tensor, "..."]:
    """The tensor `name` of a block, one of `CARRIERS`, with the map in it; type and shape stay."""
    device = tensor.device
    matrix = found.matrix.to(device)
    if name in (DENSE_BIAS, EXPERTS_BIAS):
        moved = tensor.double() @ matrix
        return (moved if found.bias is None else moved + found.bias.to(device)).to(tensor.dtype)
    if name == DENSE:
        return (matrix.T @ tensor.double()).to(tensor.dtype)
    result = torch.empty_like(tensor)
    for expert, weight in enumerate(tensor):  # in float64 they are not all held at once
        wide = weight.double()
        result[expert] = wide @ matrix if model_type == _TRANSPOSED else matrix.T @ wide
    return result


@contextmanager
def carrying(block: nn.Module, found: LinearMap, model_type: str) -> Iterator[None]:
    """The block, with its weights in place, computes with the map until the end."""
    before: dict[str, nn.Parameter | None] = {}
    there = dict(block.named_parameters())
    for name in CARRIERS:
        if name in there:
            before[name] = there[name]
            _place(block, name, fold(name, there[name].detach(), found, model_type))
    if DENSE in there and DENSE_BIAS not in there and found.bias is not None:
        before[DENSE_BIAS] = None
        _place(block, DENSE_BIAS, found.bias.to(there[DENSE]))
    try:
        yield
    finally:
        for name, parameter in before.items():
            path, _, last = name.rpartition(".")
            setattr(block.get_submodule(path), last, parameter)


def _place(block: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(block.get_submodule(path), last, nn.Parameter(tensor, requires_grad=False))


class Folded(View):
    """A checkpoint whose layers carry maps, as a checkpoint."""

    def __init__(self, source: Checkpoint, maps: Mapping[int, LinearMap]) -> None:
        """Nothing is computed but the shapes.

        A constant in a llama without biases turns `mlp_bias` on: the biases of the other layers and
        projections are zero.

        Args:
            source: the smaller model.
            maps: by index of the layer that carries it, in `source`.

        Raises:
            ConfigError: the family cannot carry a map, or not its constant.
            ValueError: a layer that is not there.
        """
        refuse_unfoldable(source.config)
        layers = source.config.num_hidden_layers
        if wrong := [layer for layer in maps if not 0 <= layer < layers]:
            raise ValueError(f"maps must be of layers 0..{layers - 1}, found {wrong}")
        config = source.config
        if any(found.bias is not None for found in maps.values()):
            if not carries_bias(config):
                raise ConfigError(
                    f"down_proj of a {config.model_type} model has no bias, so a map's constant "
                    "cannot fold into it; set compact.repair.bias: false"
                )
            if config.model_type == "llama" and not config.mlp_bias:
                config = copy.deepcopy(config)
                config.mlp_bias = True
        super().__init__(source, config)
        self._maps = {
            f"model.layers.{layer}.{name}": (name, found)
            for layer, found in maps.items()
            for name in CARRIERS
        }

    def info(self, name: str) -> Info:
        """See `View`."""
        there = self.source.shapes
        if name in there:
            return there[name]
        weight = there[name.removesuffix("bias") + "weight"]
        return Info(weight.shape[:1], weight.dtype)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """See `Checkpoint`."""
        own, found = self._maps.get(name, (name, None))
        wanted = dtype or self.info(name).dtype
        if found is None:
            if name in self.source.shapes:
                return self.source.tensor(name, dtype)
            return torch.zeros(self.info(name).shape, dtype=wanted)
        if name in self.source.shapes:
            tensor = self.source.tensor(name)
        else:  # exact until it has the map's constant
            tensor = torch.zeros(self.info(name).shape, dtype=torch.float64)
        return fold(own, tensor, found, self.config.model_type).to(wanted)
