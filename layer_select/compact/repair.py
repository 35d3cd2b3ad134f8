"""Repairing the gaps that removed layers leave, in closed form and without training.

For a kept layer i and the gap after it, up to the next kept layer j (or the final norm):

    min over A   ‖ M A + (x' − M) − y ‖²_F  +  λ ‖A − I‖²_F
    A = (MᵀM + λI)⁻¹ (Mᵀ(y − x' + M) + λI),     λ = ridge · tr(MᵀM) / D

M is the output of layer i's MLP and x' the residual leaving layer i, both of the *smaller* model
with the gaps before repaired; y is the residual entering layer j (leaving the last layer, before
the final norm) of the full model. The map folds into `down_proj` (`folded.py`). Compare ReplaceMe
(arXiv:2505.02819), which fits without ridge and constant, over padding, one contiguous block, and
for the last block against normed states. With a constant c, not held to zero, M and y − x' + M are
replaced by their deviations from their means in both products.

A map is kept if it lowers the calibration loss of the model as it then stands, whose later gaps are
not repaired yet. So the loss never rises, and the repaired model is never worse than the naive one
on the calibration samples.

Shapes: B samples, T tokens, n tokens that are not padding, D width. Sums are float64, over workers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from layer_select.compact.folded import LinearMap, carries_bias, carrying, refuse_unfoldable
from layer_select.decoder import Decoder
from rayrun.config import ConfigError
from rayrun.ray.worker import Worker

LOSS = "loss"


@dataclass(frozen=True)
class GapMap:
    """The map of one gap. Layers are numbered as in the decoder it was fitted on."""

    after: int
    gap: tuple[int, ...]
    map: LinearMap
    loss_before: float
    loss_after: float
    used: bool


def gaps_of(kept: Sequence[int], num_layers: int) -> dict[int, tuple[int, ...]]:
    """The removed layers after each kept one, where there are any.

    What is removed before the first kept layer has no layer to carry a map.
    """
    ends = [*kept[1:], num_layers]
    found = {here: tuple(range(here + 1, end)) for here, end in zip(kept, ends, strict=True)}
    return {here: gap for here, gap in found.items() if gap}


def fit(
    decoder: Decoder,
    objective: Any,
    batches: Sequence[Any],
    kept: Sequence[int],
    worker: Worker,
    *,
    ridge: float = 1e-3,
    bias: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> list[GapMap]:
    """The maps of all gaps, front to back. A collective: all workers return the same maps.

    Blocks are entered one after the other, each once for all micro-batches, so that a streamed
    decoder reads little: L blocks for the full model, k for the naive one, and for each gap those
    behind it. Kept in memory are the hidden states of this worker's calibration samples, of the
    full model at the ends of gaps only.

    Args:
        decoder: the full model, whole or streamed.
        objective: of the task, of this decoder.
        batches: the calibration micro-batches, the same on every worker.
        kept: layers that stay, ascending.
        worker: who else computes; micro-batch b belongs to worker b mod `world_size`.
        ridge: λ as a share of the mean square of M's channels; above 0.
        bias: fit a constant too; ignored where the family's `down_proj` cannot carry one.
        advance: called after each pass of all micro-batches through a block.

    Raises:
        ConfigError: the family cannot carry maps, there is no sample, or a loss or a hidden state
            is not finite.
    """
    refuse_unfoldable(decoder.config)
    run = _Run(decoder, objective, batches, worker, advance)
    gaps = gaps_of(kept, decoder.num_layers)
    targets = run.targets({gap[-1] + 1 for gap in gaps.values()})
    states = run.embedded()
    best = run.measure(run.through(states, kept))[LOSS]
    maps: list[GapMap] = []
    for place, layer in enumerate(kept):
        gap = gaps.get(layer)
        if gap is None:
            states = run.through(states, [layer])
            continue
        with decoder.block(layer) as block:
            sums = _Sums(decoder.config.hidden_size, worker.device)
            naive = run.collect(block, layer, states, targets.pop(gap[-1] + 1), sums)
            found = sums.over(worker).solve(ridge, bias and carries_bias(decoder.config), layer)
            with carrying(block, found, decoder.config.model_type):
                repaired = run.pass_through(block, layer, states)
        loss = run.measure(run.through(repaired, kept[place + 1 :]))[LOSS]
        used = loss < best
        maps.append(GapMap(layer, gap, found, best, loss, used))
        states, best = (repaired, loss) if used else (naive, best)
    return maps


def passes(kept: Sequence[int], num_layers: int) -> int:
    """How often `fit` passes all micro-batches through a block."""
    gaps = gaps_of(kept, num_layers)
    tails = sum(2 + len(kept) - place for place, layer in enumerate(kept, 1) if layer in gaps)
    teacher = max((gap[-1] + 1 for gap in gaps.values()), default=0)
    return teacher + len(kept) + len(kept) - len(gaps) + tails


def measure(
    decoder: Decoder,
    objective: Any,
    batches: Sequence[Any],
    layers: Sequence[int],
    worker: Worker,
    maps: Sequence[GapMap] = (),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss and metrics of the decoder with these layers and maps. A collective.

    Raises:
        ConfigError: there is no sample, or a loss is not finite.
    """
    run = _Run(decoder, objective, batches, worker, advance)
    carried = {found.after: found.map for found in maps if found.used}
    return run.measure(run.through(run.embedded(), layers, carried))


class _Run:
    """This worker's micro-batches on their way through the decoder, block after block."""

    def __init__(
        self,
        decoder: Decoder,
        objective: Any,
        batches: Sequence[Any],
        worker: Worker,
        advance: Callable[[], None],
    ) -> None:
        if not batches:
            raise ConfigError("the task has no sample here; raise task.calibration or task.test")
        self._decoder, self._objective, self._worker = decoder, objective, worker
        self._mine = list(batches)[worker.rank :: worker.world_size]
        self._names = list(self._metrics(batches[0]))
        self._advance = advance

    @torch.no_grad()
    def embedded(self) -> list[Tensor]:
        return [self._decoder.start(batch.ids, batch.mask).hidden for batch in self._mine]

    def through(
        self,
        states: list[Tensor],
        layers: Sequence[int],
        carried: Mapping[int, LinearMap] | None = None,
    ) -> list[Tensor]:
        for layer in layers:
            with ExitStack() as stack:
                block = stack.enter_context(self._decoder.block(layer))
                if found := (carried or {}).get(layer):
                    stack.enter_context(carrying(block, found, self._decoder.config.model_type))
                states = self.pass_through(block, layer, states)
        return states

    @torch.no_grad()
    def pass_through(self, block: nn.Module, layer: int, states: list[Tensor]) -> list[Tensor]:
        """Calls are made anew each time: masks of all micro-batches would be large."""
        found: list[Tensor] = []
        for batch, state in zip(self._mine, states, strict=True):
            call = self._decoder.start(batch.ids, batch.mask).calls[layer]
            found.append(block(state, **call))
        self._advance()
        return found

    def targets(self, ends: set[int]) -> dict[int, list[Tensor]]:
        """Residuals of the full model where gaps end, without padding, on the host."""
        states = self.embedded()
        found: dict[int, list[Tensor]] = {}
        for layer in range(max(ends, default=0)):
            states = self.through(states, [layer])
            if layer + 1 in ends:
                found[layer + 1] = [
                    self._tokens(batch, state).cpu()
                    for batch, state in zip(self._mine, states, strict=True)
                ]
        return found

    def collect(
        self,
        block: nn.Module,
        layer: int,
        states: list[Tensor],
        targets: list[Tensor],
        sums: "_Sums",
    ) -> list[Tensor]:
        """Pass through the block as it is, and add what its MLP gave to the sums."""
        outputs: list[Tensor] = []

        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        mlp: Any = block.mlp
        hook = mlp.register_forward_hook(note)
        try:
            after = self.pass_through(block, layer, states)
        finally:
            hook.remove()
        for batch, made, left, target in zip(self._mine, outputs, after, targets, strict=True):
            sums.add(
                self._tokens(batch, made.reshape(left.shape)).double(),
                self._tokens(batch, left).double(),
                target.to(left.device).double(),
            )
        return after

    @torch.no_grad()
    def measure(self, states: list[Tensor]) -> dict[str, float]:
        """Means over all samples of all workers."""
        total = torch.zeros(2 + len(self._names), dtype=torch.float64)
        for batch, state in zip(self._mine, states, strict=True):
            normed = self._decoder.finish(state)
            metrics = self._objective.metrics(normed, batch)
            values = [self._objective.loss(normed, batch), *(metrics[n] for n in self._names)]
            total[1:] += torch.stack([value.double().sum().cpu() for value in values])
            total[0] += batch.size
        total = self._worker.sum(total.to(self._worker.device)).cpu()
        means = total[1:] / total[0]
        if not bool(torch.isfinite(means[0])):
            raise ConfigError(
                f"the loss of the model must be finite, found {float(means[0])}; check the "
                "weights, or compute in float32 (score.dtype)"
            )
        return dict(zip([LOSS, *self._names], means.tolist(), strict=True))

    @torch.no_grad()
    def _metrics(self, batch: Any) -> dict[str, Tensor]:
        start = self._decoder.start(batch.ids, batch.mask)
        return self._objective.metrics(self._decoder.finish(start.hidden), batch)

    def _tokens(self, batch: Any, state: Float[Tensor, "B T D"]) -> Float[Tensor, "n D"]:
        return state[batch.mask.to(state.device).bool()]


class _Sums:
    """MᵀM, MᵀR, Σ M, Σ R and n for R = y − x' + M, what the MLP should have given."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._width = width
        self._total = torch.zeros(2 * width + 3, width, dtype=torch.float64, device=device)

    def add(
        self,
        made: Float64[Tensor, "n D"],
        after: Float64[Tensor, "n D"],
        target: Float64[Tensor, "n D"],
    ) -> None:
        wanted = target - after + made
        width = self._width
        self._total[:width] += made.T @ made
        self._total[width : 2 * width] += made.T @ wanted
        self._total[-3] += made.sum(0)
        self._total[-2] += wanted.sum(0)
        self._total[-1] += len(made)

    def over(self, worker: Worker) -> "_Sums":
        """The sums of all workers. A collective."""
        self._total = worker.sum(self._total)
        return self

    def solve(self, ridge: float, bias: bool, layer: int) -> LinearMap:
        width, total = self._width, self._total.cpu()
        if not bool(torch.isfinite(total).all()):
            raise ConfigError(
                f"hidden states at layer {layer} must be finite to repair the gap after it; check "
                "the weights, or compute in float32 (score.dtype)"
            )
        square, cross = total[:width], total[width : 2 * width]
        made, wanted, count = total[-3], total[-2], float(total[-1, 0])
        hold = ridge * float(square.trace()) / width
        if bias:
            square = square - torch.outer(made, made) / count
            cross = cross - torch.outer(made, wanted) / count
        eye = torch.eye(width, dtype=torch.float64)
        hold = hold or 1.0  # an MLP that gives nothing: any λ gives the identity
        matrix = torch.linalg.solve(square + hold * eye, cross + hold * eye).contiguous()
        return LinearMap(matrix, (wanted - made @ matrix) / count if bias else None)
