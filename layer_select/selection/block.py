"""One contiguous block of layers goes."""

from typing import Literal

from layer_select.selection.room import Layers
from layer_select.selection.search import Search
from rayrun.config import Config, ConfigError


class Block(Config):
    """Remove the n = L − k consecutive layers l .. l + n − 1 that change least.

    `angular`: l* = argmin_l d(x_l, x_{l+n}) with d = arccos(cos(x_l, x_{l+n})) / π (Gromov et al.
    2024, arXiv:2403.17887, simple variant without a log). `loss`: the block whose absence costs the
    task least.
    """

    type: Literal["block"] = "block"
    by: Literal["angular", "loss"] = "angular"

    def search(self, search: Search) -> Layers:
        """Raises: ConfigError: no block is permitted, or the scores hold no angular distances."""
        room = search.room
        length = room.num_layers - room.size
        layers = search.full
        blocks = {
            begin: layers[:begin] + layers[begin + length :] for begin in range(room.size + 1)
        }
        blocks = {begin: kept for begin, kept in blocks.items() if room.allows(kept)}
        if not blocks:
            raise ConfigError(
                f"select.strategy: block must remove {length} consecutive layers of "
                f"{room.num_layers}; each such block holds a protected layer "
                f"({list(room.protected)}) or breaks the family's rule: change the budget or "
                "select.protect, or use greedy_backward"
            )
        if self.by == "angular":
            distance = search.angular()
            begin = min(blocks, key=lambda b: (distance[b][b + length], b))
        else:
            begins = sorted(blocks)
            losses = search.losses([blocks[b] for b in begins])
            begin = begins[losses.index(min(losses))]
        kept = blocks[begin]
        search.note(kept, removed=tuple(layers[begin : begin + length]))
        return kept
