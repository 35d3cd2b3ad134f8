"""TaskBatch: what a task hands to whoever runs the model.

Shapes: B samples, T tokens of the longest row, S target tokens.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class TaskBatch:
    """Prompts padded on the left, so that the last position of every row is a real token."""

    ids: Int64[Tensor, "B T"]
    mask: Int64[Tensor, "B T"]
    """1 at real tokens, 0 at padding."""
    sample: Int64[Tensor, " B"]
    """Number of the sample within its part, whatever the batches."""
    target: Int64[Tensor, " B"]
    """Item of the catalogue (for ratings the rated one); for yes/no 0 or 1, the place of the right
    answer."""
    target_ids: Int64[Tensor, "B S"] | None = None
    """Likelihood only: the tokens to predict. Column s is predicted by position T − S − 1 + s."""
    target_valid: Bool[Tensor, "B S"] | None = None
    """False: no target there (short titles begin later)."""
    rating: Float[Tensor, " B"] | None = None
    """Ratings only: the stars given, 1 to 5; one that is drawn by a regression is any number."""

    @property
    def size(self) -> int:
        """B."""
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> "TaskBatch":
        """The same batch on a device."""
        moved = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)
