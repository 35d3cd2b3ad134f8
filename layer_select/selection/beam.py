"""Backward search that follows several sets at once."""

from typing import Literal

from pydantic import PositiveInt

from layer_select.selection.room import Layers
from layer_select.selection.search import Search
from rayrun.config import Config


class Beam(Config):
    """Backward search with the `width` best sets of every size; width 1 is greedy_backward."""

    type: Literal["beam"] = "beam"
    width: PositiveInt = 4

    def search(self, search: Search) -> Layers:
        """The best set of the last size."""
        room = search.room
        sets: dict[int, set[Layers]] = {room.num_layers: {search.full}}
        best = search.full
        for size in range(room.num_layers, room.size - 1, -1):
            here = sorted(sets.pop(size, set()))
            if not here:
                continue
            losses = search.losses(here)
            order = sorted(range(len(here)), key=lambda i: (losses[i], here[i]))
            best = here[order[0]]
            search.note(best)
            for i in order[: self.width]:
                for run in room.removals(here[i]):
                    rest = tuple(layer for layer in here[i] if layer not in run)
                    sets.setdefault(len(rest), set()).add(rest)
        return best
