"""Where a language model comes from: `model:` in the YAML, and `open_model`, which opens it.

    model: {type: hf, path: ./tiny}                  # a Hugging Face folder, here or on S3
    model: {type: gguf, path: ./model-f32.gguf}
    model: {type: ollama, name: "llama3.2:1b"}       # straight from Ollama's store, no daemon

Every form gives a `Checkpoint`; `load` and `stream` make a `Decoder` of it.
"""

from typing import Annotated

from pydantic import Field

from layer_select.sources.checkpoint import Checkpoint, Info
from layer_select.sources.gguf_file import Gguf
from layer_select.sources.huggingface import HuggingFace
from layer_select.sources.loading import load, stream
from layer_select.sources.ollama import Ollama
from rayrun.config import ConfigError

__all__ = [
    "Checkpoint",
    "Gguf",
    "HuggingFace",
    "Info",
    "ModelSource",
    "Ollama",
    "load",
    "open_model",
    "stream",
]

ModelSource = Annotated[HuggingFace | Gguf | Ollama, Field(discriminator="type")]


def open_model(model: HuggingFace | Gguf | Ollama | None, inputs_model: str = "") -> Checkpoint:
    """Open the model of a configuration; `inputs.model`, where set, wins over `model:`.

    Args:
        model: the configuration's `model:`.
        inputs_model: a Hugging Face folder, a file whose name ends in `.gguf`, or `ollama:NAME`.

    Raises:
        ConfigError: neither is given, or what they name is no whole model that we know.
    """
    if inputs_model.startswith("ollama:"):
        model = Ollama(name=inputs_model.removeprefix("ollama:"))
    elif inputs_model.endswith(".gguf"):
        model = Gguf(path=inputs_model)
    elif inputs_model:
        model = HuggingFace(path=inputs_model)
    if model is None:
        raise ConfigError(
            "a model is needed and none is given: set model: {type: hf, path: FOLDER}, or "
            "--set inputs.model=FOLDER (a .gguf file or ollama:NAME will do as well)"
        )
    return model.open()
