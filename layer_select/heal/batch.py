"""Rows that are numbered, so that what a teacher said about each is found again.

Shapes: R rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from layer_select.heal.config import Cached, Heal
from layer_select.pretrain.texts import Rows, TextMaker


@dataclass(frozen=True)
class Numbered:
    """Packed texts, and where each row stands among all that are ever learnt."""

    rows: Rows
    number: Int64[Tensor, " R"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Numbered":
        return Numbered(self.rows[part], self.number[part])

    def to(self, device: torch.device) -> "Numbered":
        """On a device; the numbers stay where files are read."""
        return Numbered(self.rows.to(device), self.number)

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return self.rows.num_tokens


def joined(parts: list[Rows]) -> Rows:
    """One after the other."""
    columns = [vars(part) for part in parts]
    return Rows(**{name: torch.cat([column[name] for column in columns]) for name in columns[0]})


class Curriculum:
    """The rows of every epoch, the same for whoever asks: every worker, every rival student."""

    def __init__(self, config: Heal, maker: TextMaker) -> None:
        """With a cached teacher rows are cut `cuts` times, and come again in another order."""
        self._config, self._maker = config, maker
        cuts = config.teacher.cuts if isinstance(config.teacher, Cached) else 0
        parts = [maker.rows(cut) for cut in range(cuts)]
        self._begins = np.cumsum([0, *map(len, parts)]).tolist()
        self.kept = joined(parts) if parts else None
        """All rows of all cuts; None: the rows of every epoch are new."""

    def rows(self, epoch: int) -> Numbered:
        """Those of an epoch, in its order."""
        if self.kept is None:
            rows = self._maker.rows(epoch)
            return Numbered(rows, torch.arange(len(rows)))
        cut = epoch % (len(self._begins) - 1)
        begin, end = self._begins[cut], self._begins[cut + 1]
        order = np.random.default_rng([self._config.seed, 1, epoch]).permutation(end - begin)
        number = torch.from_numpy(order) + begin
        return Numbered(
            Rows(**{name: column[number] for name, column in vars(self.kept).items()}), number
        )
