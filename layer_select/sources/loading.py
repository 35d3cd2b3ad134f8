"""From a checkpoint to a decoder: whole, or one block's weights at a time."""

from typing import Literal

import torch

from layer_select.decoder import Decoder
from layer_select.sources.checkpoint import Checkpoint


def load(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] = "eager",
) -> Decoder:
    """The whole model in memory."""
    raise NotImplementedError


def stream(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] = "eager",
) -> Decoder:
    """All but the blocks in memory; `block(l)` loads one block on entry and drops it on exit."""
    raise NotImplementedError
