"""A model of Ollama's store, read from its files: manifest → blobs. No daemon is asked."""

from typing import Annotated, Literal

from layer_select.sources.checkpoint import Checkpoint
from rayrun.config import Config, Place


class Ollama(Config):
    """A model that `ollama pull` or `ollama create` put on this machine."""

    type: Literal["ollama"] = "ollama"
    name: str
    """As in `ollama run`: `llama3.2:1b`, `namespace/model`, `host/namespace/model:tag`."""
    store: Annotated[str, Place] = ""
    """The folder with `manifests/` and `blobs/`; empty: $OLLAMA_MODELS, else ~/.ollama/models."""

    def open(self) -> Checkpoint:
        """Find the manifest, verify the blobs, read the header.

        Raises:
            ConfigError: no such model (the ones there are listed), a damaged blob, or a form that
                we do not read.
        """
        from layer_select.sources.ollama_store import open_ollama

        return open_ollama(self.name, self.store)
