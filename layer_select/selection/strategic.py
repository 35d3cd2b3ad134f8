"""Both ends of the model, the rest by importance."""

from typing import Literal

from pydantic import NonNegativeInt

from layer_select.selection.room import Layers, Room
from layer_select.selection.search import Search
from rayrun.config import Config


class Strategic(Config):
    """The first and last layers whatever their scores, filled up with the most important ones.

    Shortened LLaMA (Kim et al. 2024, arXiv:2402.02834) keeps the first four and the last two.
    """

    type: Literal["strategic"] = "strategic"
    method: str = "hybrid"
    """Method of `inputs.scores`."""
    first: NonNegativeInt = 1
    """Layers kept at the bottom, beside those of `select.protect`."""
    last: NonNegativeInt = 1
    """Layers kept at the top."""

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: there are no such scores, or the ends alone exceed the budget."""
        room = search.room
        ends = [*range(self.first), *range(-self.last, 0)]
        inner = Room(room.num_layers, room.keep, (*room.protected, *ends), room.rule)
        kept = inner.best(search.scores(self.method))
        search.note(kept)
        return kept
