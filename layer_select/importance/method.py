"""What a method of importance is: a configuration class that measures, in one of three ways.

- *Observed*: it watches the one forward and backward pass (`observers()`).
- *By removal*: it asks what the task loses without some layers (`by_removal(coalitions)`).
- *Combined*: it reads what the others found (`combined(found)`).

Every method returns `Found` by key, one score per layer; a higher score always means: keep.

Shapes: L layers, N samples, B samples of a micro-batch, T tokens, D hidden width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from layer_select.importance.attention_rows import Attended
from rayrun.config import Config, Json

if TYPE_CHECKING:
    from layer_select.coalitions import Coalitions

Need = Literal["backward", "squares", "absolutes", "products", "attention"]
"""What the pass computes for an observer beside the residual stream: the backward pass itself, and
of the gradients of each sample |g_n|², Σ|g_n w|, or the signed sums Σ_n g_n w; the
queries and keys of the attention."""


@dataclass(frozen=True)
class Variant:
    """Whose loss the backward pass starts from: the labels', or labels that the model draws."""

    seed: int | None = None
    """None: the task's own labels. Else drawn from the model, reproducibly by this seed."""
    draw: int = 0


OBSERVED = Variant()


@dataclass(frozen=True)
class Found:
    """What a method found, on the whole set of calibration samples; the same on every worker."""

    scores: Float[Tensor, " L"]
    """Float64; higher means keep."""
    errors: Float[Tensor, " L"]
    """Standard error of each score: over samples, permutations or coalitions."""
    samples: Float[Tensor, "N L"] | None = None
    """Scores of each sample, in ascending order of their ids, where the score is their mean."""
    details: Json = field(default_factory=dict)
    """Whatever else is worth telling, JSON data."""
    pairs: Mapping[str, Tensor] = field(default_factory=dict)
    """Matrices over pairs of positions in the residual stream, (L+1) × (L+1)."""
    seconds: float | None = None
    """What it cost beside the shared pass; whoever measured it fills this in."""

    @classmethod
    def mean(cls, samples: Float[Tensor, "N L"], details: Json | None = None) -> "Found":
        """Mean over samples, with its standard error s/√N (0 of a single sample)."""
        count = samples.shape[0]
        spread = samples.std(0, correction=1) if count > 1 else torch.zeros_like(samples[0])
        return cls(samples.mean(0), spread / count**0.5, samples, details or {})


@dataclass
class Micro:
    """One micro-batch as the observers see it, and what they measured on it."""

    index: int
    """Among all micro-batches of the calibration part."""
    sample: Int64[Tensor, " B"]
    mask: Int64[Tensor, "B T"]
    """0 at padding; on the device of the hidden states."""
    num_layers: int
    values: dict[str, Float[Tensor, "B L"]] = field(default_factory=dict)
    """By key: one number per sample and layer."""
    totals: dict[str, Tensor] = field(default_factory=dict)
    """By key: one tensor for the whole micro-batch (matrices over pairs of layers)."""

    def put(self, key: str, layer: int, values: Tensor) -> None:
        """Note one number per sample for a layer, in float64 on the host.

        Raises:
            ValueError: a number is not finite.
        """
        found = values.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"{key} of layer {layer} must be finite on every sample, micro-batch {self.index} "
                f"has {found.tolist()}; check the weights, or score in a wider dtype (score.dtype)"
            )
        if key not in self.values:
            empty = torch.full((len(self.sample), self.num_layers), torch.nan, dtype=torch.float64)
            self.values[key] = empty
        self.values[key][:, layer] = found


@dataclass(frozen=True)
class Gathered:
    """All measurements of a pass, the same on every worker and for any number of workers."""

    values: Mapping[str, Float[Tensor, "N L"]]
    """Rows in ascending order of sample ids."""
    totals: Mapping[str, Tensor]
    """Along a first axis over the micro-batches, in their order."""
    counts: Int64[Tensor, " M"]
    """Samples of each micro-batch."""
    signed: Float[Tensor, "2 L"] | None
    """Σ_θ|Σ_n g_n w| of the micro-batches with even and with odd index."""
    signed_all: Float[Tensor, " L"] | None
    """The same over all of them."""
    num_parameters: Int64[Tensor, " L"]
    """Parameters of each block."""


@dataclass(frozen=True)
class BlockGradient:
    """Gradients of one loss in one layer, for one micro-batch. Sums are of each sample, float64.

    NaN where no observer needs them.
    """

    variant: Variant
    before: Float[Tensor, "B T D"]
    """x_l."""
    after: Float[Tensor, "B T D"]
    """x_{l+1}."""
    upstream: Float[Tensor, "B T D"]
    """∂ℓ/∂x_{l+1}."""
    squares: Float[Tensor, " B"]
    """|g_n|² over the parameters of the layer."""
    absolutes: Float[Tensor, " B"]
    """Σ_θ |g_n θ|."""


class Observer:
    """Watches the pass for one method. It keeps nothing: what it measures goes into `Micro`."""

    needs: frozenset[Need] = frozenset()
    variants: Sequence[Variant] = (OBSERVED,)
    """Of the losses whose gradients it is shown."""

    def states(self, micro: Micro, states: Sequence[Float[Tensor, "B T D"]]) -> None:
        """The residual stream x_0 … x_L, before the final norm."""

    def attention(self, micro: Micro, layer: int, attended: Attended) -> None:
        """What a layer's attention works with; weights of single rows are had from it."""

    def gradient(self, micro: Micro, layer: int, found: BlockGradient) -> None:
        """Gradients of one loss in a layer, from the last layer to the first."""

    def found(self, gathered: Gathered) -> dict[str, Found]:
        """Scores by key, from the measurements of all workers."""
        raise NotImplementedError


class MethodConfig(Config):
    """Base of the methods' configuration classes."""

    type: Any

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of its scores in `scores.json`."""
        return (str(self.type),)


@runtime_checkable
class Observed(Protocol):
    """A method of the one pass."""

    def observer(self) -> Observer:
        """A fresh observer."""
        ...


@runtime_checkable
class ByRemoval(Protocol):
    """A method that evaluates the task without some layers."""

    def by_removal(self, coalitions: "Coalitions") -> dict[str, Found]:
        """Scores by key. A collective: all workers call it in the same order."""
        ...


@runtime_checkable
class Combined(Protocol):
    """A method that reads other methods' scores, or none."""

    def combined(self, found: Mapping[str, Found], num_layers: int) -> dict[str, Found]:
        """Scores by key; `found` holds what the methods before it found."""
        ...
