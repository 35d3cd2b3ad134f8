"""Opening a GGUF file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from layer_select.sources.fetched import here
from layer_select.sources.gguf_config import config_from
from layer_select.sources.gguf_header import GgufHeader, read_header
from layer_select.sources.gguf_item_head import item_head_of
from layer_select.sources.gguf_names import rule
from layer_select.sources.gguf_tensors import GgufTensors
from layer_select.sources.gguf_tokenizer import tokenizer_from
from layer_select.sources.mapped import Mapped, Recipe
from layer_select.sources.tokenizer_check import checked_tokenizer
from layer_select.task.head import ITEM_HEAD
from rayrun import storage
from rayrun.object_store import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROPE_FACTORS = "rope_freqs.weight"


class GgufCheckpoint(Mapped):
    """A `Checkpoint` of one file."""

    header: GgufHeader

    def __init__(
        self, path: Path, where: str, beside: Callable[[str], bytes | None] | None = None
    ) -> None:
        """Read the header and check it.

        Args:
            path: the file.
            where: how messages call it.
            beside: finds a file that belongs to the model; None: by name in the same folder.
        """
        self.header = read_header(path, where)
        self._beside = beside
        tensors = GgufTensors(self.header, where)
        shapes = {name: info.shape for name, info in tensors.infos.items()}
        factors = None
        if ROPE_FACTORS in shapes:
            factors = tensors.read(ROPE_FACTORS, None).numpy()
        config = config_from(self.header.metadata, shapes, factors, where)

        def recipe(name: str) -> Recipe:
            found = rule(name, config, tensors.infos)
            return Recipe(found.tensors, found.layout.read, found.layout.moves_only)

        super().__init__(config, where, tensors, recipe, ignored=(ROPE_FACTORS,))

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """See `Checkpoint`."""
        found = tokenizer_from(self.header.metadata, self.where)
        return checked_tokenizer(found, self.config, self.where)

    def file(self, name: str) -> bytes | None:
        """See `Checkpoint`: the item head is in the file itself, others are in its folder."""
        if name == ITEM_HEAD:
            width = self.config.hidden_size
            if (head := item_head_of(self.header.metadata, width, self.where)) is not None:
                return head
        if self._beside is not None:
            return self._beside(name)
        place = self.header.path.parent / name
        return place.read_bytes() if place.is_file() else None


def open_gguf(uri: str) -> GgufCheckpoint:
    """Open a file; see `Gguf.open`."""
    if local_path(uri) is not None:
        return GgufCheckpoint(here(uri), uri)
    folder = uri.rpartition("/")[0]

    def beside(name: str) -> bytes | None:
        place = storage.join(folder, name)
        return storage.read_bytes(place) if storage.exists(place) else None

    return GgufCheckpoint(here(uri), uri, beside)
