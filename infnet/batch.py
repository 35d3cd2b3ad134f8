"""Batch: the one struct from data to model.

Shapes: B rows, M categorical fields, K dense columns, n events of a sequence, f ids per event,
T tasks.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SequenceBatch:
    """Past events of one behaviour type, left-aligned, oldest first, padded with id 0."""

    ids: Int64[Tensor, "B n f"]
    ages: Float[Tensor, "B n"]
    """Days between the event and the row; 0 at padding."""
    lengths: Int64[Tensor, " B"]

    @property
    def valid(self) -> Bool[Tensor, "B n"]:
        """True where an event stands, False at padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


@dataclass(frozen=True)
class Batch:
    """Rows ready for a model; columns in the order of the schema."""

    ids: Int64[Tensor, "B M"]
    dense: Float[Tensor, "B K"]
    sequences: dict[str, SequenceBatch]
    labels: Float[Tensor, "B T"]
    """0 where not observed."""
    observed: Bool[Tensor, "B T"]
    """False: the label is unknown, the row gives this task no loss and no metric."""
    weight: Float[Tensor, " B"]
    user: Int64[Tensor, " B"]
    """Grouping key of gAUC and the bootstrap (a stable 63-bit hash of the raw user)."""
    row_id: Int64[Tensor, " B"]
    """Position in the raw log; joins predictions back to rows."""

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on another device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same rows in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda t: t.pin_memory())

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """Some of the rows, in the order asked for."""
        return self._map(lambda t: t[rows])

    def _map(self, function: Any) -> "Batch":
        def each(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, SequenceBatch):
                return SequenceBatch(*(function(getattr(value, f.name)) for f in fields(value)))
            return {name: each(inner) for name, inner in value.items()}

        return Batch(*(each(getattr(self, f.name)) for f in fields(self)))


def concatenate(batches: list[Batch]) -> Batch:
    """One batch of all rows, in order; sequences are padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    sequences = {
        name: SequenceBatch(
            ids=_stack([b.sequences[name].ids for b in batches]),
            ages=_stack([b.sequences[name].ages for b in batches]),
            lengths=torch.cat([b.sequences[name].lengths for b in batches]),
        )
        for name in batches[0].sequences
    }
    flat = {
        f.name: torch.cat([getattr(b, f.name) for b in batches])
        for f in fields(Batch)
        if f.name != "sequences"
    }
    return Batch(sequences=sequences, **flat)


def _stack(parts: list[Tensor]) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        room = part.new_zeros((part.shape[0], longest, *part.shape[2:]))
        room[:, : part.shape[1]] = part
        padded.append(room)
    return torch.cat(padded)
