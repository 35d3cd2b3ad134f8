"""A GGUF file: weights, configuration and tokenizer in one, perhaps quantised."""

from typing import Literal

from layer_select.sources.checkpoint import Checkpoint
from rayrun.config import Config, PlacePath


class Gguf(Config):
    """One file of llama.cpp's format; quantised tensors are computed with dequantised."""

    type: Literal["gguf"] = "gguf"
    path: PlacePath
    """The file; one in an object store is copied to this machine's cache, and verified there."""

    def open(self) -> Checkpoint:
        """Read the header and check it.

        Raises:
            ConfigError: no such file, or it holds no whole model of a known family.
        """
        from layer_select.sources.gguf_checkpoint import open_gguf

        return open_gguf(self.path)
