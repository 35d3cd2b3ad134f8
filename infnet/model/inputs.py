"""What embedding tables hand to every network: dense tensors, so DDP and ZeRO see no tables.

Shapes: B rows, d_f width of field f, K dense columns, n events, d_s sum of an event's embedding
widths, H histories: B, or fewer that rows share where the model `shares_histories`.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Inputs(NamedTuple):
    """Embedded rows. Dictionaries keep the order of the schema."""

    fields: dict[str, Float[Tensor, "B _"]]
    """One embedding per categorical field."""
    dense: Float[Tensor, "B K"]
    """Standardised numbers; `Schema.dense_starts` says which columns are whose."""
    sequences: dict[str, Float[Tensor, "H _ _"]]
    """The event's embeddings side by side, in the order of `SequenceSlot.tables`; 0 at padding."""
    valid: dict[str, Bool[Tensor, "H _"]]
    """False at padding."""
    ages: dict[str, Float[Tensor, "H _"]]
    """Days since each event; 0 at padding."""
