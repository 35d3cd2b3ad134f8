"""Gradients of single samples in one block, without a backward pass for each sample.

For y_t = W a_t + b of sample n with d_t = ∂ℓ_n/∂y_t the gradient of the weights is
G_n = Σ_t d_t a_tᵀ, and with A, D the rows a_t, d_t its square is |G_n|² = ⟨AAᵀ, DDᵀ⟩: either is
formed from what the forward pass and one batched backward pass to the outputs of the linear maps
give, for the loss of a batch that is a SUM over samples has the d of every sample at once. No
gradient of a weight is ever held by autograd.

- Linear maps and their biases: by a and d.
- Scales of norms (one vector): each sample gets its own copy of the vector, so that autograd gives
  G_n itself, of any family's formula.
- Everything else (experts fused into one tensor, routers, learned sinks): the block once more for
  each sample, with gradients of these parameters only.

Shapes: B samples, T tokens, D hidden width, P parameters of the block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layer_select.importance.method import Need

FORMED_BYTES = 256 * 2**20
"""Gradients of several samples are formed at once up to this size."""


@dataclass
class Sums:
    """Sums over the parameters of a block: of each sample's gradient, in float64."""

    needs: frozenset[Need]
    squares: Float[Tensor, " B"]
    absolutes: Float[Tensor, " B"]
    products: dict[str, Tensor] = field(default_factory=dict)
    """Σ_n g_n w by parameter, in float64."""

    @property
    def forms(self) -> bool:
        """Whether single gradients must be formed."""
        return "absolutes" in self.needs

    def add(self, name: str, weight: Tensor, rows: slice, gradients: Tensor) -> None:
        """Count gradients (b × shape of the weight) of the samples `rows`; they are used up.

        Along the last axis of a weight in its own precision (float32 at least), from there on in
        float64: eight times as fast as float64 throughout, and as exact to 1e-8.
        """
        gradients = _wide(gradients)
        if "squares" in self.needs:
            norms = torch.linalg.vector_norm(gradients, dim=-1).double()
            self.squares[rows] += norms.square().reshape(len(norms), -1).sum(1)
        if "products" in self.needs:
            self.add_product(name, weight, gradients.sum(0))
        if "absolutes" in self.needs:
            taken = gradients.mul_(weight).abs_().sum(-1).double()
            self.absolutes[rows] += taken.reshape(len(taken), -1).sum(1)

    def add_product(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Count the signed sum of the gradients of all samples."""
        product = gradient.double() * weight.double()
        self.products[name] = self.products[name] + product if name in self.products else product


@dataclass
class Traced:
    """A block run forward, ready for backward passes from several losses."""

    block: nn.Module
    before: Float[Tensor, "B T D"]
    after: Float[Tensor, "B T D"]
    call: Mapping[str, Any]
    linear: dict[str, list[tuple[nn.Linear, Tensor, Tensor]]]
    """By module: input and output of each call."""
    scales: dict[str, list[Tensor]]
    """By parameter: each sample's copy, in each call."""

    def backward(
        self,
        upstream: Float[Tensor, "B T D"],
        needs: frozenset[Need],
        timed: Callable[[str], Any],
        *,
        last: bool,
    ) -> tuple[Float[Tensor, "B T D"], Sums]:
        """∂ℓ/∂x_l from ∂ℓ/∂x_{l+1}, and the sums that are needed.

        Args:
            upstream: ∂ℓ/∂x_{l+1}.
            needs: which sums.
            timed: context manager that clocks a part of the work by name.
            last: no further backward pass follows: the graph is freed.
        """
        outputs = [output for calls in self.linear.values() for _, _, output in calls]
        copies = [copy for calls in self.scales.values() for copy in calls]
        with timed("backward"):
            gradients = torch.autograd.grad(
                self.after,
                [self.before, *outputs, *copies],
                upstream,
                retain_graph=not last,
                allow_unused=True,
            )
        empty = upstream.new_full((len(upstream),), torch.nan, dtype=torch.float64)
        zeros = torch.zeros_like(empty)
        squares = zeros.clone() if "squares" in needs else empty
        sums = Sums(needs, squares, zeros if "absolutes" in needs else empty)
        if needs & {"squares", "absolutes", "products"}:
            # One clock for all sums: what forms a gradient for one of them forms it for the others.
            with timed("weights"), torch.no_grad():
                found = iter(gradients[1:])
                for name, calls in self.linear.items():
                    parts = [(a, _or_zeros(next(found), y)) for _, a, y in calls]
                    _add_linear(sums, name, calls[0][0], parts)
                for name, calls in self.scales.items():
                    own = torch.stack(
                        [_or_zeros(next(found), copy).flatten(1) for copy in calls]
                    ).sum(0)
                    sums.add(name, self.block.get_parameter(name), slice(None), own)
            with timed("weights"):
                self._add_rest(sums, upstream)
        return gradients[0].detach(), sums

    def _add_rest(self, sums: Sums, upstream: Tensor) -> None:
        """The parameters that are neither in a linear map nor a scale: sample by sample."""
        done = {f"{name}.weight" for name in self.linear} | {f"{name}.bias" for name in self.linear}
        done |= self.scales.keys()
        rest = {n: p for n, p in self.block.named_parameters() if n not in done}
        if not rest:
            return
        for row in range(len(upstream)):
            one = slice(row, row + 1)
            call = {key: _row(value, row, len(upstream)) for key, value in self.call.items()}
            with _tracked(rest.values()), torch.enable_grad():
                after = self.block(self.before.detach()[one], **call)
                found = torch.autograd.grad(
                    after, list(rest.values()), upstream[one], allow_unused=True
                )
            for (name, parameter), gradient in zip(rest.items(), found, strict=True):
                if gradient is not None:  # an expert that no token chose has none
                    sums.add(name, parameter.detach(), one, gradient[None])


def trace(block: nn.Module, before: Float[Tensor, "B T D"], call: Mapping[str, Any]) -> Traced:
    """Run a block forward, noting what the gradients of single samples are made of."""
    linear: dict[str, list[tuple[nn.Linear, Tensor, Tensor]]] = {}
    scales: dict[str, list[Tensor]] = {}
    before = before.detach().requires_grad_()
    size = before.shape[:2]
    with ExitStack() as hooks, torch.enable_grad():
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                hooks.callback(_note_linear(name, module, size, linear).remove)
            elif _is_norm(module):
                hooks.enter_context(_own_scales(f"{name}.weight", module, size[0], scales))
        after = block(before, **call)
    linear = {
        n: calls for n, calls in linear.items() if all(len(a) == size[0] for _, a, _ in calls)
    }
    scales = {n: calls for n, calls in scales.items() if all(len(c) == size[0] for c in calls)}
    return Traced(block, before, after, call, linear, scales)


def formed(a: Float[Tensor, "B T I"], d: Float[Tensor, "B T O"]) -> Float[Tensor, "B O I"]:
    """G_n = Σ_t d_t a_tᵀ of each sample."""
    return d.mT @ a


def square_by_grams(a: Float[Tensor, "B T I"], d: Float[Tensor, "B T O"]) -> Float[Tensor, " B"]:
    """|G_n|² = ⟨AAᵀ, DDᵀ⟩, in float64: cheaper than forming G_n where T (I + O) < I · O."""
    grams = (a @ a.mT).double() * (d @ d.mT).double()
    return grams.sum((1, 2)).clamp(min=0)


# ---------------------------------------------------------------------------------------------


def _add_linear(
    sums: Sums, name: str, module: nn.Linear, parts: Sequence[tuple[Tensor, Tensor]]
) -> None:
    a = torch.cat([_wide(a) for a, _ in parts], 1)  # calls add up like further tokens
    d = torch.cat([_wide(d).reshape(*a.shape[:2], -1) for a, d in parts], 1)
    tokens, inputs, outputs = a.shape[1], a.shape[2], d.shape[2]
    weight = module.weight.detach()
    if sums.forms or ("squares" in sums.needs and tokens * (inputs + outputs) >= inputs * outputs):
        at_once = max(1, FORMED_BYTES // (inputs * outputs * a.element_size()))
        for begin in range(0, len(a), at_once):
            rows = slice(begin, begin + at_once)
            sums.add(f"{name}.weight", weight, rows, formed(a[rows], d[rows]))
    else:
        if "squares" in sums.needs:
            sums.squares += square_by_grams(a, d)
        if "products" in sums.needs:
            sums.add_product(f"{name}.weight", weight, d.flatten(0, 1).T @ a.flatten(0, 1))
    if module.bias is not None:
        sums.add(f"{name}.bias", module.bias.detach(), slice(None), d.sum(1))


def _note_linear(
    name: str, module: nn.Linear, size: torch.Size, found: dict[str, Any]
) -> torch.utils.hooks.RemovableHandle:
    def note(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a, y = inputs[0].detach(), output
        if a.shape[:-1].numel() == size.numel() and a.shape[:2] != size:
            a = a.reshape(*size, -1)  # rows of all samples in one axis
        found.setdefault(name, []).append((module, a if a.dim() == 3 else a[:0], y))

    return module.register_forward_hook(note)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _is_norm(module: nn.Module) -> bool:
    """A norm written in Python, whose scale multiplies by broadcasting (torch's own do not)."""
    own = list(module.named_parameters(recurse=False))
    return (
        type(module).__name__.endswith("RMSNorm")
        and not type(module).__module__.startswith("torch.")
        and [(n, p.dim()) for n, p in own] == [("weight", 1)]
    )


@contextmanager
def _own_scales(
    name: str, module: nn.Module, samples: int, found: dict[str, list[Tensor]]
) -> Iterator[None]:
    """While the block is open, each call of the norm multiplies each sample by its own copy."""
    kept = module._parameters["weight"]
    assert kept is not None

    def give(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.dim() < 3 or len(x) != samples:
            found.setdefault(name, []).append(x[:0])
            return  # another layout: these gradients are taken sample by sample
        copies = kept.detach().expand(samples, *[1] * (x.dim() - 2), -1).requires_grad_()
        found.setdefault(name, []).append(copies)
        module._parameters.pop("weight")
        module.__dict__["weight"] = copies

    def take(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.__dict__.pop("weight", None) is not None:
            module._parameters["weight"] = kept

    handles = [module.register_forward_pre_hook(give), module.register_forward_hook(take)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        module.__dict__.pop("weight", None)
        module._parameters["weight"] = kept


def _row(value: Any, row: int, samples: int) -> Any:
    """The part of a block's argument that belongs to one sample."""
    if isinstance(value, Tensor):
        return value[row : row + 1] if value.dim() > 1 and len(value) == samples else value
    if isinstance(value, tuple | list):
        return type(value)(_row(part, row, samples) for part in value)
    return value


@contextmanager
def _tracked(parameters: Any) -> Iterator[None]:
    chosen = list(parameters)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
