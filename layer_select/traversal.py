"""Orders in which sets of layers run over micro-batches, so that what they share runs once.

*Depth first*: micro-batch by micro-batch, the tree of the sets' prefixes walked in lexicographic
order. One state on its way at a time, and a block entered for every run of it: for decoders whose
weights are in place.

*Layer-major*: each block is entered once, and every (set, micro-batch) that holds it goes through
it. For decoders that read a block's weights, or gather them, on entry. What does not fit into
memory is split, first into groups of micro-batches, which run no block twice, then of sets; a block
is entered once for each group.

Both run a block on the same states, so their values are equal, bit by bit; and as often, if memory
suffices.

Shapes: B samples of a micro-batch, T tokens, D width, C sets, K numbers of a sample.
"""

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from layer_select.decoder import Decoder, Start

Layers = tuple[int, ...]
"""A set of layers, in the order of the model."""

Scorer = Callable[[Tensor, Any], Float64[Tensor, "B K"]]
"""Numbers of each sample from its last residual state and the batch."""

Numbered = tuple[int, Any]
"""A micro-batch and its number."""


class Traversal(ABC):
    """Runs sets of layers over the micro-batches of one worker, and counts what that took."""

    def __init__(self, decoder: Decoder, score: Scorer, cache_bytes: int) -> None:
        self.decoder, self.score = decoder, score
        self.cache = States(cache_bytes)
        self.runs: Counter[Layers] = Counter()
        """Runs of a block on a micro-batch, by the layers up to it."""
        self.reads = 0
        """Times that a block's weights were read or gathered."""

    @abstractmethod
    def measure(
        self, mine: Sequence[Numbered], todo: Sequence[Layers], shared: Sequence[int]
    ) -> list[Float64[Tensor, "B C K"]]:
        """All sets on all of this worker's micro-batches, one tensor for each of them.

        Args:
            mine: the micro-batches.
            todo: the sets, in lexicographic order.
            shared: how many first layers each shares with the one after it, of this call or the
                next; the state there is kept while memory lasts.
        """


class DepthFirst(Traversal):
    """For weights in place: all memory keeps states for the next sets and calls."""

    @torch.no_grad()
    def measure(
        self, mine: Sequence[Numbered], todo: Sequence[Layers], shared: Sequence[int]
    ) -> list[Float64[Tensor, "B C K"]]:
        """See `Traversal`."""
        return [self._walk(number, batch, todo, shared) for number, batch in mine]

    def _walk(
        self, number: int, batch: Any, todo: Sequence[Layers], shared: Sequence[int]
    ) -> Tensor:
        start = self.decoder.start(batch.ids, batch.mask)
        columns: list[Tensor] = []
        for kept, common in zip(todo, shared, strict=True):
            depth, x = self.cache.longest(number, kept)
            x = start.hidden if x is None else x
            for here in range(depth, len(kept)):
                with self.decoder.block(kept[here]) as block:
                    x = block(x, **start.calls[kept[here]])
                self.runs[kept[: here + 1]] += 1
                if here < common:
                    self.cache.keep(number, kept[: here + 1], x)
            columns.append(self.score(x, batch))
        return torch.stack(columns, dim=1)


class LayerMajor(Traversal):
    """For weights that cost to enter. A third of the memory is for the states on their way, one for
    those that later sets begin with, and one for those that are taken from there meanwhile.
    """

    def __init__(
        self,
        decoder: Decoder,
        score: Scorer,
        memory_bytes: int,
        batches: Sequence[Any],
        world_size: int,
    ) -> None:
        """`batches` are all workers': what is split into how many groups is the same for all."""
        super().__init__(decoder, score, memory_bytes // 3)
        largest = max(_state_bytes(decoder, batch) for batch in batches)
        self._states = max(1, memory_bytes // 3 // largest)
        """How many may be on their way at once."""
        self._most = -(-len(batches) // world_size)
        """Micro-batches of the worker that has the most."""

    @torch.no_grad()
    def measure(
        self, mine: Sequence[Numbered], todo: Sequence[Layers], shared: Sequence[int]
    ) -> list[Float64[Tensor, "B C K"]]:
        """See `Traversal`."""
        found: dict[int, list[Tensor]] = {number: [] for number, _ in mine}
        for sets in groups(todo, self._states):
            at_once = max(1, self._states // width(todo[sets]))
            for begin in range(0, self._most, at_once):
                some = mine[begin : begin + at_once]
                for number, columns in self._sweep(some, todo[sets], shared[sets]):
                    found[number] += columns
        return [torch.stack(columns, dim=1) for columns in found.values()]

    def _sweep(
        self, some: Sequence[Numbered], todo: Sequence[Layers], shared: Sequence[int]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        works = [_Work(n, b, self.decoder.start(b.ids, b.mask)) for n, b in some]
        for work in works:
            for index, kept in enumerate(todo):
                depth, x = self.cache.longest(work.number, kept)
                work.begin(index, kept[:depth], work.start.hidden if x is None else x)
            self._finish(work, todo)
        wanted = sorted({layer for kept in todo for layer in kept})
        for layer in wanted:
            moving = [work for work in works if work.waiting(layer, todo)]
            if not moving and not self.decoder.together:
                continue
            self.reads += 1
            with ExitStack() as inside:
                block = inside.enter_context(self.decoder.block(layer))
                for work in moving:
                    self._advance(work, layer, block, todo, shared)
                    self._finish(work, todo)
        for work in works:
            yield work.number, [work.columns[index] for index in range(len(todo))]

    def _advance(
        self, work: "_Work", layer: int, block: Any, todo: Sequence[Layers], shared: Sequence[int]
    ) -> None:
        going: dict[Layers, list[int]] = {}
        for index in work.waiting(layer, todo):
            going.setdefault(work.at[index], []).append(index)
        for prefix, indices in going.items():
            x = block(work.states[prefix], **work.start.calls[layer])
            longer = (*prefix, layer)
            self.runs[longer] += 1
            if any(len(prefix) < shared[index] for index in indices):
                self.cache.keep(work.number, longer, x)
            for index in indices:
                work.begin(index, longer, x)

    def _finish(self, work: "_Work", todo: Sequence[Layers]) -> None:
        for index in [i for i, prefix in work.at.items() if prefix == todo[i]]:
            work.columns[index] = self.score(work.states[todo[index]], work.batch)
            work.leave(index)


@dataclass
class _Work:
    """A micro-batch on its way through the layers, with the states of all sets."""

    number: int
    batch: Any
    start: Start
    at: dict[int, Layers] = field(default_factory=dict)
    """How far each unfinished set has come."""
    states: dict[Layers, Tensor] = field(default_factory=dict)
    holders: Counter[Layers] = field(default_factory=Counter)
    """How many sets are at each state."""
    columns: dict[int, Tensor] = field(default_factory=dict)

    def waiting(self, layer: int, todo: Sequence[Layers]) -> list[int]:
        """The sets that go through this layer next."""
        return [i for i, prefix in self.at.items() if todo[i][len(prefix)] == layer]

    def begin(self, index: int, prefix: Layers, state: Tensor) -> None:
        """Set `index` has come to `prefix`."""
        self.leave(index)
        self.at[index] = prefix
        self.holders[prefix] += 1
        self.states[prefix] = state

    def leave(self, index: int) -> None:
        """A state that no set is at is dropped."""
        if index not in self.at:
            return
        left = self.at.pop(index)
        self.holders[left] -= 1
        if not self.holders[left]:
            del self.states[left]


def width(todo: Sequence[Layers]) -> int:
    """How many states of one micro-batch stand at once, at most, while these sets go through the
    layers together: those of prefixes that still go on, and the embeddings.
    """
    layers = {layer for kept in todo for layer in kept}
    widest = 1
    for layer in layers:
        alive = {tuple(i for i in kept if i <= layer) for kept in todo if kept and kept[-1] > layer}
        widest = max(widest, len(alive))
    return widest + 1


def groups(todo: Sequence[Layers], states: int) -> list[slice]:
    """Split sets in their order into as few runs as go with so many states; one set always does."""
    found: list[slice] = []
    begin = 0
    while begin < len(todo):
        fits, beyond = begin + 1, len(todo) + 1
        while beyond - fits > 1:  # the width grows with the sets
            middle = (fits + beyond) // 2
            if width(todo[begin:middle]) <= states:
                fits = middle
            else:
                beyond = middle
        found.append(slice(begin, fits))
        begin = fits
    return found


def _state_bytes(decoder: Decoder, batch: Any) -> int:
    """Of the hidden state of a micro-batch and the mask it is called with."""
    rows, tokens = batch.ids.shape
    size = decoder.body.embed_tokens.weight.element_size()
    return rows * tokens * (decoder.config.hidden_size + tokens) * size


def common(a: Layers, b: Layers) -> int:
    """How many first layers two sets share."""
    for depth, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return depth
    return min(len(a), len(b))


class States:
    """Hidden states by micro-batch and prefix; the least recently used goes when room is needed."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory = self._room = memory_bytes
        self._kept: OrderedDict[tuple[int, Layers], Tensor] = OrderedDict()

    def longest(self, batch: int, kept: Layers) -> tuple[int, Tensor | None]:
        """The state after the longest prefix of `kept` that is here, and the prefix's length."""
        for depth in range(len(kept), 0, -1):
            entry = (batch, kept[:depth])
            if entry in self._kept:
                self._kept.move_to_end(entry)
                return depth, self._kept[entry]
        return 0, None

    def keep(self, batch: int, prefix: Layers, state: Tensor) -> None:
        """Keep a state, if there is room for it at all."""
        if state.nbytes > self._memory or (batch, prefix) in self._kept:
            return
        while state.nbytes > self._room:
            _, oldest = self._kept.popitem(last=False)
            self._room += oldest.nbytes
        self._room -= state.nbytes
        self._kept[batch, prefix] = state
