"""`score.execution`: where the weights are while layers are scored."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from rayrun.config import Config


class Whole(Config):
    """Every worker holds the whole model."""

    type: Literal["whole"] = "whole"


class Streamed(Config):
    """Every worker holds one block at a time, read from the checkpoint when it is needed.

    The blocks are read twice for every chunk of micro-batches, forward and backward; where sets of
    layers are evaluated, once for all sets and micro-batches whose states fit in memory.
    """

    type: Literal["streamed"] = "streamed"
    activation_bytes: PositiveInt = 2 * 2**30
    """Memory for residual streams: as many micro-batches, or sets of layers, go through a block
    while it is there as fit."""


class Zero3(Config):
    """Every worker holds its part of each block (DeepSpeed ZeRO-3); blocks are gathered in turn."""

    type: Literal["zero3"] = "zero3"
    activation_bytes: PositiveInt = 2 * 2**30
    """As for `streamed`."""


Execution = Annotated[Whole | Streamed | Zero3, Field(discriminator="type")]
