"""Choices that look at no layer: what every search must beat."""

from typing import Literal

from layer_select.selection.room import Layers, Room
from layer_select.selection.search import Search
from rayrun.config import Config


class FirstK(Config):
    """The first k layers (SLMRec, Xu et al. 2024, arXiv:2405.17890)."""

    type: Literal["first_k"] = "first_k"

    def search(self, search: Search) -> Layers:
        """Nothing is tried."""
        kept = first_k(search.room)
        search.note(kept)
        return kept


class EveryNth(Config):
    """Every (L/k)-th layer, beginning with the first."""

    type: Literal["every_nth"] = "every_nth"

    def search(self, search: Search) -> Layers:
        """Nothing is tried."""
        kept = every_nth(search.room)
        search.note(kept)
        return kept


class Random(Config):
    """A set drawn from all that the budget, the protected layers and the rule permit."""

    type: Literal["random"] = "random"
    seed: int = 0

    def search(self, search: Search) -> Layers:
        """Nothing is tried."""
        kept = random_sets(search.room, 1, self.seed)[0]
        search.note(kept)
        return kept


def first_k(room: Room) -> Layers:
    """Layers 0 .. k − 1; protected ones take the place of the highest."""
    return room.nearest(range(room.size))


def every_nth(room: Room) -> Layers:
    """Layers ⌊i L / k⌋, i = 0 .. k − 1, or what is permitted nearest to them."""
    return room.nearest(i * room.num_layers // room.size for i in range(room.size))


def random_sets(room: Room, count: int, seed: int) -> list[Layers]:
    """`count` sets, each drawn by itself: two may be equal."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return [room.draw(generator) for _ in range(count)]
