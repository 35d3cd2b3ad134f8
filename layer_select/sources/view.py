"""A checkpoint seen through a change: what is not changed is read from the one behind it."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from layer_select.sources.checkpoint import Checkpoint, Info
from layer_select.sources.deciding import deciding_entries
from layer_select.sources.mapped import hash_tensor
from layer_select.sources.reading import reading
from layer_select.sources.skeleton import skeleton, tied_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class View(Checkpoint):
    """Another checkpoint with another configuration; nothing is copied.

    Subclasses say what becomes of the tensors. Quantised ones appear as the numbers they stand for.
    """

    def __init__(self, source: Checkpoint, config: Any) -> None:
        """`source` is the checkpoint behind; `config` belongs to the view."""
        self.source = source
        self.config = config
        self.where = source.where
        model = skeleton(config)
        self._names = tuple(model.state_dict())
        self._tied = tied_names(model)

    @property
    def quantised(self) -> str | None:
        """None: what a view gives are floating-point numbers."""
        return None

    @property
    def digest(self) -> str:
        """See `Checkpoint`: that of the folder which `write_folder` makes of it unconverted."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        entries = deciding_entries(self.config)
        total.update(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode())
        names = sorted(set(self._names) - set(self._tied))
        with reading(f"digest of {self.where}", self.shapes.values(), len(names)) as bar:
            for name in names:
                hash_tensor(total, name, self.tensor(name))
                bar.advance()
        return "sha256:" + total.hexdigest()

    @property
    def shapes(self) -> Mapping[str, Info]:
        """See `Checkpoint`."""
        return self._shapes

    @cached_property
    def _shapes(self) -> dict[str, Info]:
        return {name: self.info(name) for name in self._names}

    def info(self, name: str) -> Info:
        """Shape and type of one tensor of the view; here that of the same name behind."""
        return self.source.shapes[name]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """See `Checkpoint`; here the tensor of the same name behind."""
        return self.source.tensor(name, dtype)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """See `Checkpoint`."""
        return self.source.tokenizer()

    def file(self, name: str) -> bytes | None:
        """See `Checkpoint`."""
        return self.source.file(name)


def behind(checkpoint: Checkpoint) -> Checkpoint:
    """The files at the end of a chain of views."""
    while isinstance(checkpoint, View):
        checkpoint = checkpoint.source
    return checkpoint
