"""What every form of a model on disk looks like to the rest of layer_select."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Info(NamedTuple):
    """Shape and element type of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint(ABC):
    """A decoder-only language model at rest, read one tensor at a time.

    Tensors carry the names of the state dict of `AutoModelForCausalLM.from_config(config)` in
    whatever form and spelling the files hold them. Opening reads headers only, and has checked that
    exactly these tensors are there, in these shapes.
    """

    config: Any
    """Configuration of the text decoder (a `PreTrainedConfig`)."""
    where: str
    """How messages call it: a path, a URI or `ollama:NAME`."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """`sha256:…` of what decides its outputs, the same for every form of the same model.

        Over the deciding entries of the configuration and, by state-dict name, element type, shape
        and bytes of every tensor; of a quantised tensor the name of its type and its raw blocks.
        Reads everything once (and remembers the answer). A tied head is counted once.
        """

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Info]:
        """Every tensor of the state dict; the type is that of the file, float32 if quantised."""

    @property
    @abstractmethod
    def quantised(self) -> str | None:
        """Types of the quantised tensors, `Q4_K, Q6_K`; None if all are floating-point numbers."""

    @abstractmethod
    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, in memory of its own; experts are stacked and blocks dequantised on demand.

        Args:
            name: of `shapes`.
            dtype: to convert to; None keeps the type of `shapes`.
        """

    @abstractmethod
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that came with the model.

        Raises:
            ConfigError: there is none, or its vocabulary has more entries than the embedding.
        """

    @abstractmethod
    def file(self, name: str) -> bytes | None:
        """A file beside the weights (`item_head.safetensors`), in an Ollama store a layer
        (`template`); None where there is none.
        """
