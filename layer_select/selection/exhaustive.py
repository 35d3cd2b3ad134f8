"""Every set of the size: the truth that searches are measured against."""

from typing import Literal

from layer_select.selection.room import Layers
from layer_select.selection.search import Search
from rayrun.config import Config, ConfigError

MOST_LAYERS = 12


class Exhaustive(Config):
    """The set with the smallest loss of all; for models of at most 12 layers."""

    type: Literal["exhaustive"] = "exhaustive"

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: the model has more layers."""
        if search.room.num_layers > MOST_LAYERS:
            raise ConfigError(
                f"select.strategy: exhaustive tries every set and needs a model of at most "
                f"{MOST_LAYERS} layers, this one has {search.room.num_layers}; use beam or "
                "greedy_backward"
            )
        sets = list(search.room.sets())
        losses = search.losses(sets)
        kept = sets[losses.index(min(losses))]
        search.note(kept)
        return kept
