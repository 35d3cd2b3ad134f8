"""One pass over the calibration samples: all that a forward and a backward pass can tell of layers.

Layer by layer, for a chunk of micro-batches at a time: each block runs forward on all of them, then
the loss, then each block from the last to the first runs again from its stored input and backward
to it. A block's weights are needed twice for each chunk and no other's meanwhile, so a decoder that
streams its blocks holds one. Nothing is summed over samples on the way: every number stays with its
sample until the rows of all workers are put together in the samples' order, and is therefore the
same, bit by bit, for any number of workers.

Shapes: L layers, N samples of all workers, B samples of a micro-batch, T tokens, D hidden width.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layer_select.decoder import Decoder, Start
from layer_select.importance.attention_rows import watched
from layer_select.importance.gradients import trace
from layer_select.importance.journal import Journal, Part
from layer_select.importance.method import (
    OBSERVED,
    BlockGradient,
    Gathered,
    Micro,
    Need,
    Observer,
    Variant,
)
from layer_select.task.batch import TaskBatch
from layer_select.task.objective import Objective
from rayrun.ray.worker import Worker

LOSS = "loss"
"""Key of the sum of the losses of a micro-batch among its totals."""


@dataclass
class _Work:
    """A micro-batch on its way through the layers."""

    batch: TaskBatch
    micro: Micro
    start: Start
    states: list[Tensor]
    upstream: dict[Variant, Tensor] = field(default_factory=dict)


class OnePass:
    """Runs the observers of all methods over the micro-batches of this worker."""

    def __init__(
        self,
        decoder: Decoder,
        objective: Objective,
        observers: Mapping[str, Observer],
        worker: Worker,
        *,
        chunk: int = 1,
        journal: Journal | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            decoder: the model.
            objective: the task's, of this decoder.
            observers: by name of the clock that tells what each costs.
            worker: this process among the workers.
            chunk: micro-batches that go through a block while its weights are there.
            journal: where finished micro-batches are noted; None: nowhere.
        """
        self.decoder, self.objective, self.worker = decoder, objective, worker
        self.observers, self.chunk, self.journal = dict(observers), chunk, journal
        self.part = Part()
        self._needs: dict[Variant, frozenset[Need]] = {}
        for observer in self.observers.values():
            if "backward" in observer.needs:
                for variant in observer.variants:
                    known = self._needs.get(variant, frozenset())
                    self._needs[variant] = known | observer.needs
        self._attention = [n for n, o in self.observers.items() if "attention" in o.needs]

    def run(self, batches: Sequence[TaskBatch]) -> tuple[Gathered, dict[str, float]]:
        """Measure, and gather what all workers measured. A collective.

        Returns:
            The measurements, the same on all workers, and the seconds of all workers together:
            `forward`, `backward` and `weights` (sums over weight gradients) for everybody, and by
            observer what it added.

        Raises:
            ValueError: a measurement is not finite.
            ConfigError: the journal is damaged.
        """
        earlier = self.journal.read(self.decoder.num_layers) if self.journal else []
        self.worker.barrier()  # everybody has read before anybody writes
        done = {micro.index for part in earlier for micro in part.micros}
        todo = [index for index in range(len(batches)) if index not in done]
        ranks, rank = self.worker.world_size, self.worker.rank
        mine = todo[rank::ranks]
        written = time.monotonic()
        # As many rounds on all workers: entering a block may be a collective.
        for begin in range(0, -(-len(todo) // ranks), self.chunk):
            self._run_chunk([(i, batches[i]) for i in mine[begin : begin + self.chunk]])
            last = begin < len(mine) <= begin + self.chunk
            if self.journal and (last or time.monotonic() - written > self.journal.flush_s):
                self.journal.write(rank, self.part)
                written = time.monotonic()
            count = len(done) + min(len(todo), (begin + self.chunk) * ranks)
            self.worker.progress(count, len(batches), "micro-batches")
        return self._gather([self.part, *earlier[rank::ranks]])

    # -----------------------------------------------------------------------------------------

    def _run_chunk(self, batches: Sequence[tuple[int, TaskBatch]]) -> None:
        works = self._forward(batches)
        for work in works:
            for name, observer in self.observers.items():
                with self._timed(name):
                    observer.states(work.micro, work.states)
            self._losses(work)
        if self._needs:
            self._backward(works)
        self.part.micros += [work.micro for work in works]

    def _forward(self, batches: Sequence[tuple[int, TaskBatch]]) -> list[_Work]:
        works: list[_Work] = []
        with self._timed("forward"), torch.no_grad():
            for index, batch in batches:
                start = self.decoder.start(batch.ids, batch.mask)
                mask = batch.mask.to(self.decoder.device)
                micro = Micro(index, batch.sample.cpu(), mask, self.decoder.num_layers)
                works.append(_Work(batch, micro, start, [start.hidden]))
        for layer in range(self.decoder.num_layers):
            with ExitStack() as inside:
                with self._timed("forward"):
                    block = inside.enter_context(self.decoder.block(layer))
                for work in works:
                    with self._attention_seen(block, layer, work), torch.no_grad():
                        with self._timed("forward"):
                            after = block(work.states[-1], **work.start.calls[layer])
                        work.states.append(after)
        return works

    @contextmanager
    def _attention_seen(self, block: nn.Module, layer: int, work: _Work) -> Iterator[None]:
        if not self._attention:
            yield
            return
        with watched(block, work.micro.mask) as seen:
            yield
        (attended,) = seen
        for name in self._attention:
            with self._timed(name):
                self.observers[name].attention(work.micro, layer, attended)

    def _losses(self, work: _Work) -> None:
        """The loss of each variant, and its gradient at the last residual state."""
        with self._timed("forward"), torch.set_grad_enabled(bool(self._needs)):
            last = work.states[-1].detach().requires_grad_(bool(self._needs))
            normed = self.decoder.finish(last)
        if OBSERVED not in self._needs:
            with self._timed("forward"), torch.no_grad():
                self._note_loss(work, self.objective.loss(normed, work.batch))
        for number, variant in enumerate(self._needs):
            batch = work.batch
            with self._timed("backward"), torch.enable_grad():
                if variant.seed is not None:
                    generator = torch.Generator().manual_seed(_seed(variant, work.micro.index))
                    batch = self.objective.drawn(normed.detach(), batch, generator)
                losses = self.objective.loss(normed, batch)
                keep = number < len(self._needs) - 1
                (work.upstream[variant],) = torch.autograd.grad(
                    losses.sum(), last, retain_graph=keep
                )
            if variant == OBSERVED:
                self._note_loss(work, losses.detach())

    def _note_loss(self, work: _Work, losses: Tensor) -> None:
        work.micro.totals[LOSS] = losses.double().sum().cpu()

    def _backward(self, works: Sequence[_Work]) -> None:
        variants = list(self._needs)
        for layer in reversed(range(self.decoder.num_layers)):
            with ExitStack() as inside:
                with self._timed("backward"):
                    block = inside.enter_context(self.decoder.block(layer))
                    block.requires_grad_(False)
                for work in works:
                    with self._timed("backward"):
                        traced = trace(block, work.states[layer], work.start.calls[layer])
                    for variant in variants:
                        last = variant is variants[-1]
                        upstream, needs = work.upstream[variant], self._needs[variant]
                        work.upstream[variant], sums = traced.backward(
                            upstream, needs, self._timed, last=last
                        )
                        found = BlockGradient(
                            variant,
                            work.states[layer],
                            work.states[layer + 1],
                            upstream,
                            sums.squares,
                            sums.absolutes,
                        )
                        for name, observer in self.observers.items():
                            if "backward" in observer.needs and variant in observer.variants:
                                with self._timed(name):
                                    observer.gradient(work.micro, layer, found)
                        if sums.products:
                            self._add_signed(block, layer, work.micro.index, sums.products)
                    work.states.pop()

    def _add_signed(
        self, block: nn.Module, layer: int, index: int, products: Mapping[str, Tensor]
    ) -> None:
        with self._timed("weights"):
            flat = torch.cat(
                [
                    products[name].flatten().cpu()
                    if name in products
                    else torch.zeros(_numel(parameter), dtype=torch.float64)
                    for name, parameter in block.named_parameters()
                ]
            )
            key = (index % 2, layer)
            if key in self.part.signed:
                self.part.signed[key] += flat
            else:
                self.part.signed[key] = flat

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = self._now()
        try:
            yield
        finally:
            spent = self.part.seconds
            spent[name] = spent.get(name, 0.0) + self._now() - started

    def _now(self) -> float:
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)
        return time.monotonic()

    # -----------------------------------------------------------------------------------------

    def _gather(self, parts: Sequence[Part]) -> tuple[Gathered, dict[str, float]]:
        micros = sorted((m for part in parts for m in part.micros), key=lambda m: m.index)
        shapes = self._shapes(micros)
        indices = self._rows([torch.tensor([m.index]) for m in micros], (), torch.int64)
        order = indices.argsort()
        sizes = self._rows([torch.tensor([len(m.sample)]) for m in micros], (), torch.int64)
        samples = self._rows([m.sample for m in micros], (), torch.int64)
        by_id = samples.argsort()
        values = {
            key: self._rows([m.values[key] for m in micros], (self.decoder.num_layers,))[by_id]
            for key in shapes["values"]
        }
        totals = {
            key: self._rows([m.totals[key][None] for m in micros], tuple(shape))[order]
            for key, shape in shapes["totals"].items()
        }
        numbers = [sum(_numel(p) for p in block.parameters()) for block in self.decoder.blocks]
        halves, whole = None, None
        if any("products" in needs for needs in self._needs.values()):
            halves, whole = self._signed(parts, numbers)
        gathered = Gathered(values, totals, sizes[order], halves, whole, torch.tensor(numbers))
        return gathered, self._seconds(parts)

    def _shapes(self, micros: Sequence[Micro]) -> dict[str, Any]:
        """Keys and shapes of the measurements; a worker without micro-batches learns them here."""
        known: dict[str, Any] = {}
        if micros:
            totals = {key: list(v.shape) for key, v in sorted(micros[0].totals.items())}
            known = {"values": sorted(micros[0].values), "totals": totals}
        for text in self._texts(json.dumps(known)):
            known = known or json.loads(text)
        return known

    def _texts(self, text: str) -> list[str]:
        row = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        rows = self.worker.gather_rows(row.to(self.worker.device))
        return [bytes(r.cpu().tolist()).decode() for r in rows]

    def _rows(
        self, rows: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.float64
    ) -> Tensor:
        mine = torch.cat(rows) if rows else torch.zeros((0, *shape), dtype=dtype)
        return torch.cat(self.worker.gather_rows(mine.to(self.worker.device))).cpu()

    def _signed(self, parts: Sequence[Part], numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        halves = torch.zeros(2, len(numbers), dtype=torch.float64)
        whole = torch.zeros(len(numbers), dtype=torch.float64)
        for layer, number in enumerate(numbers):
            total = torch.zeros(number, dtype=torch.float64, device=self.worker.device)
            for half in (0, 1):
                own = torch.zeros(number, dtype=torch.float64)
                for part in parts:
                    if (half, layer) in part.signed:
                        own += part.signed[half, layer]
                found = self.worker.sum(own.to(self.worker.device))
                halves[half, layer] = found.abs().sum()
                total += found
            whole[layer] = total.abs().sum()
        return halves, whole

    def _seconds(self, parts: Sequence[Part]) -> dict[str, float]:
        mine: dict[str, float] = {}
        for part in parts:
            mine = _added(mine, part.seconds)
        total: dict[str, float] = {}
        for text in self._texts(json.dumps(mine)):
            total = _added(total, json.loads(text))
        return total


def _added(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in {**left, **right}}


def _numel(parameter: Any) -> int:
    """Numbers of a parameter, also of one that DeepSpeed has partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _seed(variant: Variant, index: int) -> int:
    text = f"{variant.seed}-{variant.draw}-{index}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
