"""A decoder whose blocks are shared out among the workers: DeepSpeed ZeRO-3.

Every worker keeps its part of each parameter of the blocks, and `block(l)` gathers one block whole.
Embeddings, the final norm and the head stay whole on every worker. Entering a block is a
collective: all workers must enter the same blocks in the same order.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layer_select.decoder import Decoder
from rayrun.ray import deepspeed as floor


class Zero3Decoder(Decoder):
    """Blocks partitioned over the process group, gathered one at a time."""

    streams = together = True

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        """Take a decoder's blocks over, one by one: of a streamed one only one is whole at a time.

        Args:
            decoder: all workers' the same; it must not be used afterwards.
            device: of this worker.
        """
        super().__init__(decoder.model)
        self._deepspeed: Any = floor.partitioner(device)
        dtype = next(decoder.model.parameters()).dtype
        for index in range(decoder.num_layers):
            with decoder.block(index) as block:
                own = copy.deepcopy(block).requires_grad_(False)
            self._deepspeed.zero.Init(
                module=own,
                remote_device="cpu" if device.type == "cpu" else None,
                config_dict_or_path={"train_micro_batch_size_per_gpu": 1},
                dtype=dtype,
            )
            self.blocks[index] = own

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Block `index`, gathered on every worker. A collective."""
        block = self.blocks[index]
        with self._deepspeed.zero.GatheredParameters(list(block.parameters())):
            yield block
