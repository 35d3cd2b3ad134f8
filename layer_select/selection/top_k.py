"""The layers with the highest scores."""

from typing import Literal

from layer_select.selection.room import Layers
from layer_select.selection.search import Search
from rayrun.config import Config


class TopK(Config):
    """The k layers of highest importance (one shot; ShortGPT, Men et al. 2024, arXiv:2403.03853,
    with `method: block_influence`).

    Scores say what a layer does in the whole model, not what is lost once its neighbours are gone
    too: a gradient score by itself may drop the first layer.
    """

    type: Literal["top_k"] = "top_k"
    method: str = "hybrid"
    """Method of `inputs.scores`."""

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: there are no such scores."""
        kept = search.room.best(search.scores(self.method))
        search.note(kept)
        return kept
