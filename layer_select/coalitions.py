"""What the task loses on a decoder that runs with some of its layers only, measured once for each
set of layers.

    v(S) = mean over samples of the loss of norm((f_{s_k} ∘ … ∘ f_{s_1})(x_0)),  S = {s_1 < … < s_k}

Sets that begin with the same layers share the hidden states after them. The sets of one call are
taken in lexicographic order, so that each follows the one it shares most with, and a prefix is
computed once for as long as its state is kept. For a round of a greedy search over m layers that is
(m−1) + m(m−1)/2 runs of a block in place of m(m−1); what else fits in memory serves the next round.
Where a block's weights are read or gathered when they are needed, the sets of a call go through it
together (`layer_select.traversal`).

Shapes: N samples of all workers, L layers, K metrics.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from layer_select.coalitions_journal import Journal
from layer_select.decoder import Decoder
from layer_select.traversal import DepthFirst, LayerMajor, Layers, Traversal, common
from rayrun import storage
from rayrun.config import ConfigError
from rayrun.ray.worker import Worker

MEMORY_BYTES = 1 << 30

AT_ONCE = 256
"""Sets between two entries in the journal: what a kill may cost."""


class Coalitions:
    """Losses and metrics of sets of kept layers over the samples of one part of the task.

    All workers call the same methods in the same order. Every worker computes its micro-batches (b
    belongs to worker b mod `world_size`); the values of all samples are then gathered and put in
    the order of the samples' ids, so that all workers see the same numbers, bit by bit, and these
    do not depend on how many workers there are.
    """

    def __init__(
        self,
        decoder: Decoder,
        objective: Any,
        batches: Sequence[Any],
        worker: Worker,
        *,
        journal: storage.Uri | None = None,
        key: str = "",
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Nothing is computed but the names of the metrics; a journal that stands is read.

        Args:
            decoder: the model with all its layers.
            objective: `layer_select.task`'s, of this decoder.
            batches: all micro-batches of the part, the same on every worker.
            worker: who else computes.
            journal: JSONL file, a path or `s3://` URI, written by rank 0, that a later object of
                the same `key` goes on from; None on all ranks or on none.
            key: what the values depend on (digests of model and task, the part).
            memory_bytes: of hidden states kept between sets, and of a decoder that streams also of
                those on their way; what does not fit is computed again, in more groups.

        Raises:
            ConfigError: there is no batch, or the journal is of another key.
        """
        if not batches:
            raise ConfigError("the task has no sample here; raise task.calibration, .validation")
        self._decoder, self._objective, self._worker = decoder, objective, worker
        self._mine = [
            (number, batch)
            for number, batch in enumerate(batches)
            if number % worker.world_size == worker.rank
        ]
        ids = torch.cat([torch.as_tensor(batch.sample).reshape(-1) for batch in batches])
        self.samples: Int64[Tensor, " N"] = ids.sort().values
        """Ids of the samples, in the order of all values."""
        dealt = [
            torch.as_tensor(batch.sample).reshape(-1)
            for rank in range(worker.world_size)
            for batch in batches[rank :: worker.world_size]
        ]
        self._order = torch.cat(dealt).argsort()
        self.metric_names = self._names(batches[0])
        self._values: dict[Layers, Float64[Tensor, "N K"]] = {}
        self._traversal: Traversal = (
            LayerMajor(decoder, self._score, memory_bytes, batches, worker.world_size)
            if decoder.streams
            else DepthFirst(decoder, self._score, memory_bytes)
        )
        self._naive = 0
        self._evaluated = 0
        self._journal = Journal(journal, key, self._shape) if journal is not None else None
        if self._journal is not None:
            self._resume(self._journal)

    @property
    def num_layers(self) -> int:
        """L."""
        return self._decoder.num_layers

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.samples)

    @property
    def computed(self) -> int:
        """Sets that were computed by this object; those of the journal are not among them."""
        return self._evaluated

    @property
    def evaluations(self) -> int:
        """Runs of one block on one micro-batch so far, over all workers (a collective).

        Prefixes that were computed again are counted as often as they were.
        """
        return self._total(sum(self._traversal.runs.values()))

    @property
    def naive_evaluations(self) -> int:
        """What the same sets cost without shared prefixes (a collective)."""
        return self._total(self._naive)

    @property
    def rebuilt(self) -> int:
        """Those of `evaluations` that repeat an earlier one, for want of memory (a collective)."""
        mine = len(self._mine)
        counts = self._traversal.runs.values()
        return self._total(sum(max(0, runs - mine) for runs in counts))

    @property
    def block_reads(self) -> int:
        """Times that a block's weights were read or gathered, over all workers (a collective); 0 of
        a decoder whose weights are in place.
        """
        return self._total(self._traversal.reads)

    def evaluate(self, coalitions: Iterable[Iterable[int]]) -> None:
        """Measure all these sets that are not known yet. A collective.

        Raises:
            ValueError: a layer that the decoder does not have.
            ConfigError: a loss is not finite.
        """
        todo = sorted({self._layers(c) for c in coalitions} - self._values.keys())
        shared = [*(common(a, b) for a, b in itertools.pairwise(todo)), 0]
        for begin in range(0, len(todo), AT_ONCE):
            chunk = slice(begin, begin + AT_ONCE)
            found = self._measure(todo[chunk], shared[chunk])
            known = len(self._values) + len(found)
            self._worker.progress(known, known + len(todo) - begin - len(found), "sets of layers")
            for kept, values in zip(todo[chunk], found, strict=True):
                self._values[kept] = values
                if self._journal is not None and self._worker.rank == 0:
                    self._journal.add(kept, values)

    def losses(self, coalition: Iterable[int]) -> Float64[Tensor, " N"]:
        """Loss of each sample, of all workers, in the order of `samples`. A collective."""
        return self._of(coalition)[:, 0]

    def loss(self, coalition: Iterable[int]) -> float:
        """Mean loss over the samples. A collective."""
        return float(self.losses(coalition).mean())

    def metric_values(self, coalition: Iterable[int]) -> dict[str, Float64[Tensor, " N"]]:
        """Metrics of each sample, in the order of `samples`. A collective."""
        values = self._of(coalition)
        return {name: values[:, k] for k, name in enumerate(self.metric_names, start=1)}

    def metrics(self, coalition: Iterable[int]) -> dict[str, float]:
        """Mean of each metric over the samples. A collective."""
        return {name: float(v.mean()) for name, v in self.metric_values(coalition).items()}

    # -----------------------------------------------------------------------------------------

    def _of(self, coalition: Iterable[int]) -> Tensor:
        kept = self._layers(coalition)
        if kept not in self._values:
            self.evaluate([kept])
        return self._values[kept]

    def _layers(self, coalition: Iterable[int]) -> Layers:
        kept = tuple(sorted({int(layer) for layer in coalition}))
        if kept and (kept[0] < 0 or kept[-1] >= self.num_layers):
            raise ValueError(
                f"a coalition holds layers of 0..{self.num_layers - 1}, found {list(kept)}"
            )
        return kept

    def _total(self, count: int) -> int:
        value = torch.tensor(float(count), dtype=torch.float64, device=self._worker.device)
        return int(self._worker.sum(value).item())

    @torch.no_grad()
    def _names(self, batch: Any) -> list[str]:
        start = self._decoder.start(batch.ids, batch.mask)
        return list(self._objective.metrics(self._decoder.finish(start.hidden), batch))

    @property
    def _shape(self) -> tuple[int, int]:
        return self.num_samples, 1 + len(self.metric_names)

    def _measure(self, todo: Sequence[Layers], shared: Sequence[int]) -> list[Tensor]:
        parts = self._traversal.measure(self._mine, todo, shared)
        width = self._shape[1]
        mine = torch.cat([torch.empty(0, len(todo), width, dtype=torch.float64), *parts])
        self._naive += sum(map(len, todo)) * len(self._mine)
        self._evaluated += len(todo)
        gathered = self._worker.gather_rows(mine.to(self._worker.device))
        values = torch.cat([part.cpu() for part in gathered])[self._order]
        if not bool(torch.isfinite(values[:, :, 0]).all()):
            n, c = (~torch.isfinite(values[:, :, 0])).nonzero()[0].tolist()
            raise ConfigError(
                f"the loss of every sample must be finite; with layers {list(todo[c])} that of "
                f"sample {int(self.samples[n])} is {float(values[n, c, 0])}: check the weights, or "
                "compute in float32"
            )
        return list(values.unbind(1))

    def _score(self, last: Tensor, batch: Any) -> Float64[Tensor, "B K"]:
        normed = self._decoder.finish(last)
        metrics = self._objective.metrics(normed, batch)
        values = [self._objective.loss(normed, batch), *(metrics[n] for n in self.metric_names)]
        return torch.stack([value.detach().double().cpu() for value in values], dim=-1)

    def _resume(self, journal: Journal) -> None:
        """What rank 0 finds in its journal becomes known to all."""
        found = dict(journal.read()) if self._worker.rank == 0 else {}
        count = self._total(len(found))
        if not count:
            return
        masks = torch.zeros(count, self.num_layers, dtype=torch.float64)
        values = torch.zeros(count, *self._shape, dtype=torch.float64)
        for row, (kept, known) in enumerate(found.items()):
            masks[row, list(kept)] = 1
            values[row] = known
        masks, values = (
            self._worker.sum(part.to(self._worker.device)).cpu() for part in (masks, values)
        )
        for mask, known in zip(masks, values, strict=True):
            self._values[tuple(mask.nonzero().flatten().tolist())] = known
