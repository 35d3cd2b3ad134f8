"""A random order of the layers: what any method must beat."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeInt

from layer_select.importance.method import Found, MethodConfig


class Random(MethodConfig):
    """Scores drawn uniformly from [0, 1)."""

    type: Literal["random"] = "random"
    seed: NonNegativeInt = 0

    def combined(self, found: Mapping[str, Found], num_layers: int) -> dict[str, Found]:
        """The same scores for the same seed and number of layers."""
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(num_layers, generator=generator, dtype=torch.float64)
        return {"random": Found(scores, torch.zeros_like(scores))}
