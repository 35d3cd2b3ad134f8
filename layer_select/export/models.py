"""The models of a bundle: a Hugging Face folder, and the same as GGUF with a Modelfile."""

from pathlib import Path
from typing import Any

import torch

from layer_select.compact.origin import FILE as ORIGIN
from layer_select.config import LayerSelectConfig
from layer_select.export import bundle as layout
from layer_select.export.modelfile import Beside, modelfile
from layer_select.sources import Checkpoint, HuggingFace, open_model
from layer_select.sources.gguf_write import check_sayable, write_gguf
from layer_select.sources.huggingface_write import write_folder
from rayrun.config import ConfigError

WRITTEN = {
    "keep": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def refuse_unsayable(config: LayerSelectConfig, checkpoint: Checkpoint) -> None:
    """Tell before anything is written that GGUF has no words for this model.

    Raises:
        ConfigError: it has none.
    """
    if config.export.gguf == "none":
        return
    try:
        check_sayable(checkpoint, type=config.export.gguf, tokenizer=checkpoint.tokenizer())
    except ConfigError as error:
        raise ConfigError(
            f"{error}; --set export.gguf=none leaves the GGUF file out of the bundle"
        ) from None


def beside_source(config: LayerSelectConfig) -> Beside | None:
    """Finds template, parameters, licence … of the Ollama model that the configuration names; None
    where it names another kind of model.

    Raises:
        ConfigError: there is no such model in the store.
    """
    named = config.inputs.model
    begun = named.startswith("ollama:") if named else getattr(config.model, "type", "") == "ollama"
    return open_model(config.model, named).file if begun else None


def write_models(
    config: LayerSelectConfig, source: Checkpoint, beside: Beside, directory: Path
) -> Checkpoint:
    """Write the folder, then GGUF file and Modelfile from it; return the folder, opened.

    Args:
        config: `export:` says which forms.
        source: the model.
        beside: finds what a Modelfile is made of.
        directory: of the bundle.

    Raises:
        ConfigError: a tensor of the source cannot be read, or GGUF or a Modelfile cannot say it.
    """
    section = config.export
    folder = directory / layout.MODEL
    folder.mkdir()
    write_folder(source, folder, dtype=WRITTEN[section.dtype], shard_bytes=section.shard_bytes)
    if (origin := source.file(ORIGIN)) is not None:
        (folder / ORIGIN).write_bytes(origin)
    written = HuggingFace(path=str(folder)).open()
    if section.gguf == "none":
        return written
    tokenizer = written.tokenizer()
    path = directory / layout.GGUF
    write_gguf(written, path, type=section.gguf, tokenizer=tokenizer, name=config.name)
    text = modelfile(
        lambda kind: beside(kind) or (beside("LICENSE") if kind == "license" else None),
        gguf=layout.GGUF,
        context=int(source.config.max_position_embeddings),
        stop=_stop(tokenizer, source.config.eos_token_id),
        chat_template=isinstance(tokenizer.chat_template, str),
    )
    (directory / layout.MODELFILE).write_text(text, encoding="utf-8")
    return written


def _stop(tokenizer: Any, eos: int | list[int] | None) -> list[str]:
    """Texts that end an answer."""
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    named = [tokenizer.eos_token] if tokenizer.eos_token else []
    return list(dict.fromkeys([*map(str, tokenizer.convert_ids_to_tokens(ids)), *named]))
