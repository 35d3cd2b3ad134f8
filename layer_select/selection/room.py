"""Which sets of layers may be kept: how many, which ones always, and what other runtimes can run.

Some families give a layer its kind by its index (every second one sliding, say), and runtimes that
do so hard-wired compute another function when a layer moves to an index of another kind. Such a
rule judges pairs (old index, new index), so every first part of a set that is allowed is allowed,
and the sets can be counted, searched and drawn layer by layer. Intermediate sets are deployable
too: a search under a rule of period p removes runs of p layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from rayrun.config import ConfigError

Layers = tuple[int, ...]


@runtime_checkable
class Rule(Protocol):
    """What a family demands of the kept layers (`layer_select.families`)."""

    def allows(self, kept: Iterable[int]) -> bool:
        """Whether the layers `kept` may become layers 0, 1, 2 and so on."""
        ...

    def explain(self) -> str:
        """The rule in words, for messages and the plan."""
        ...


class Room:
    """The sets of at most `keep` of `num_layers` layers that hold the protected ones and obey the
    rule.
    """

    def __init__(
        self,
        num_layers: int,
        keep: int,
        protected: Iterable[int] = (),
        rule: Rule | None = None,
    ) -> None:
        """`size` becomes the largest number of layers up to `keep` that the rule leaves possible.

        Args:
            num_layers: L of the model.
            keep: layers at most.
            protected: always kept; negative ones count from the end.
            rule: of the family, or None.

        Raises:
            ConfigError: no such layers, a budget outside 1..L or below the protected layers, or one
                that the rule leaves no set for.
        """
        self.num_layers = num_layers
        self.rule = rule
        self.protected = _indices(protected, num_layers)
        if not 1 <= keep <= num_layers:
            raise ConfigError(
                f"select.budget must leave 1 to {num_layers} layers of this model, found {keep}"
            )
        if keep < len(self.protected):
            raise ConfigError(
                f"select.budget leaves {keep} layers, fewer than the {len(self.protected)} "
                f"protected ones {list(self.protected)}; raise the budget or shorten select.protect"
            )
        least = max(1, len(self.protected))
        possible = [size for size in range(keep, least - 1, -1) if self._ways(size)[0][0]]
        if not possible:
            larger = [size for size in range(keep + 1, num_layers + 1) if self._ways(size)[0][0]]
            remedy = f"the next possible number is {larger[0]}" if larger else "no number does"
            raise ConfigError(
                f"select.budget leaves {keep} layers and select.protect demands "
                f"{list(self.protected)}: no such set obeys the family's rule ({self._explain}); "
                f"{remedy}. Change one of them, or set select.portable: false for a model that "
                "only Hugging Face's code will run"
            )
        self.keep = keep
        self.size = possible[0]

    def of_size(self, size: int) -> "Room":
        """The same room for another number of layers (early stopping ends where it likes)."""
        return Room(self.num_layers, size, self.protected, self.rule)

    def unprotected(self) -> "Room":
        """The same room without protected layers, for choices that know of none."""
        return Room(self.num_layers, self.size, (), self.rule)

    def allows(self, kept: Iterable[int]) -> bool:
        """Whether the rule and the protected layers permit this set, of whatever size."""
        layers = tuple(sorted(kept))
        return set(self.protected) <= set(layers) and self._obeys(layers)

    def count(self) -> int:
        """How many sets of `size` layers there are."""
        return self._ways(self.size)[0][0]

    def sets(self) -> Iterator[Layers]:
        """All sets of `size` layers, in lexicographic order."""
        ways = self._ways(self.size)

        def after(kept: Layers, layer: int) -> Iterator[Layers]:
            if layer == self.num_layers:
                yield kept
                return
            new = len(kept)
            if new < self.size and self._may_sit(layer, new) and ways[layer + 1][new + 1]:
                yield from after((*kept, layer), layer + 1)
            if layer not in self.protected and ways[layer + 1][new]:
                yield from after(kept, layer + 1)

        return after((), 0)

    def draw(self, generator: Any) -> Layers:
        """One set of `size` layers, each equally likely; `generator` is NumPy's."""
        ways = self._ways(self.size)
        kept: list[int] = []
        for layer in range(self.num_layers):
            new = len(kept)
            fits = new < self.size and self._may_sit(layer, new)
            keeping = ways[layer + 1][new + 1] if fits else 0
            leaving = 0 if layer in self.protected else ways[layer + 1][new]
            if generator.random() * (keeping + leaving) < keeping:
                kept.append(layer)
        return tuple(kept)

    def best(self, weights: Sequence[float]) -> Layers:
        """The set of `size` layers with the largest sum of `weights`; ties go to low indices."""
        worst: tuple[float, Layers] = (float("-inf"), ())
        table: list[tuple[float, Layers]] = [worst] * (self.size + 1)
        table[self.size] = (0.0, ())
        for layer in reversed(range(self.num_layers)):  # table[c]: best of layer.. after c are kept
            row: list[tuple[float, Layers]] = [worst] * len(table)
            for new in range(min(layer, self.size) + 1):
                options: list[tuple[float, Layers]] = []
                if new < self.size and self._may_sit(layer, new):
                    value, rest = table[new + 1]
                    options.append((value + weights[layer], (layer, *rest)))
                if layer not in self.protected:
                    options.append(table[new])
                row[new] = max(options, key=lambda option: option[0], default=worst)
            table = row
        return table[0][1]

    def nearest(self, wanted: Iterable[int], scores: Sequence[float] | None = None) -> Layers:
        """The set of `size` layers that shares most with `wanted`; itself if it is permitted.

        Of several, the one whose `scores` rank highest; without scores, low indices.
        """
        inside = set(wanted)
        order = sorted(range(self.num_layers), key=lambda i: (scores[i] if scores else 0.0, -i))
        rank = {layer: place for place, layer in enumerate(order)}
        small = 1 / (self.num_layers * self.num_layers)  # all ranks together weigh less than one
        return self.best([(i in inside) + small * rank[i] for i in range(self.num_layers)])

    def removals(self, kept: Layers) -> list[Layers]:
        """Smallest runs of layers that can go from `kept`, one for each layer a run may begin with.

        What remains obeys the rule, and a set of `size` layers can still be reached from it.
        Without a rule every run is one layer.
        """
        found: list[Layers] = []
        for begin in range(len(kept)):
            for end in range(begin + 1, len(kept) - self.size + begin + 1):
                run = kept[begin:end]
                if run[-1] in self.protected:
                    break
                rest = kept[:begin] + kept[end:]
                if self._obeys(rest) and self._reaches(rest):
                    found.append(run)
                    break
        return found

    def additions(self, kept: Layers) -> list[int]:
        """Layers that can join `kept` so that it is part of some set of `size` layers."""
        free = (layer for layer in range(self.num_layers) if layer not in kept)
        return [layer for layer in free if self._ways(self.size, must=(*kept, layer))[0][0]]

    def swaps(self, kept: Layers) -> list[Layers]:
        """The permitted sets that differ from `kept` in one layer."""
        found: list[Layers] = []
        for out in kept:
            if out in self.protected:
                continue
            for new in range(self.num_layers):
                if new in kept:
                    continue
                other = tuple(sorted({*kept, new} - {out}))
                if self._obeys(other):
                    found.append(other)
        return found

    # -----------------------------------------------------------------------------------------

    @property
    def _explain(self) -> str:
        return "none" if self.rule is None else self.rule.explain()

    def _obeys(self, kept: Layers) -> bool:
        return self.rule is None or self.rule.allows(kept)

    @cached_property
    def _sits(self) -> list[list[bool]]:
        return [
            [self._obeys((*range(new), old)) for new in range(old + 1)]
            for old in range(self.num_layers)
        ]

    def _may_sit(self, old: int, new: int) -> bool:
        """Whether layer `old` may become layer `new`."""
        return self._sits[old][new]

    def _reaches(self, kept: Layers) -> bool:
        if self.rule is None:
            return len(kept) >= self.size
        return bool(self._ways(self.size, among=kept)[0][0])

    def _ways(
        self, size: int, *, among: Iterable[int] | None = None, must: Iterable[int] = ()
    ) -> list[list[int]]:
        """[l][c]: in how many ways layers l.. complete a set of `size` of which c are kept."""
        open_to = set(range(self.num_layers) if among is None else among)
        demanded = {*self.protected, *must}
        ways = [[0] * (size + 2) for _ in range(self.num_layers + 1)]
        ways[self.num_layers][size] = 1
        for layer in reversed(range(self.num_layers)):
            for new in range(min(layer, size) + 1):
                count = 0 if layer in demanded else ways[layer + 1][new]
                if layer in open_to and self._may_sit(layer, new):
                    count += ways[layer + 1][new + 1]
                ways[layer][new] = count
        return ways


def _indices(layers: Iterable[int], num_layers: int) -> Layers:
    found: set[int] = set()
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise ConfigError(
                f"select.protect names layers 0..{num_layers - 1} of this model (or −1 for the "
                f"last), found {layer}"
            )
        found.add(layer % num_layers)
    return tuple(sorted(found))
