"""A Hugging Face folder: config.json, safetensors in one file or in shards, a tokenizer."""

from typing import Literal

from layer_select.sources.checkpoint import Checkpoint
from rayrun.config import Config, PlacePath


class HuggingFace(Config):
    """A folder as `save_pretrained` writes it."""

    type: Literal["hf"] = "hf"
    path: PlacePath
    """The folder: a path or `s3://bucket/folder`."""

    def open(self) -> Checkpoint:
        """Read the headers and check them.

        Raises:
            ConfigError: no such folder, or it holds no whole model of a known family.
        """
        from layer_select.sources.huggingface_folder import open_folder

        return open_folder(self.path)
