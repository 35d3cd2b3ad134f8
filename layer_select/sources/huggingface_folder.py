"""Opening a Hugging Face folder: configuration, weights by their index, tokenizer."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layer_select.families import by_model_type
from layer_select.sources.mapped import Mapped, RawInfo, Recipe
from layer_select.sources.mxfp4 import dequantised, packed
from layer_select.sources.safetensors_file import SafetensorsFile
from layer_select.sources.tokenizer_check import checked_tokenizer
from rayrun import storage
from rayrun.config import ConfigError, Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_WRAPPED = ("language_model.", "model.language_model.")
_NOT_TEXT = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
_RECOMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
_PER_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")


class HuggingFaceFolder(Mapped):
    """A `Checkpoint` of a folder."""

    def __init__(self, uri: str) -> None:
        """Read configuration and headers and check them; see `HuggingFace.open`."""
        self.uri = uri
        storage.refuse_incomplete(uri)
        config = _config(uri)
        shards = Shards(uri)
        super().__init__(
            config,
            uri,
            shards,
            lambda name: _recipe(name, config, shards.infos),
            ignored=[name for name in shards.infos if _unneeded(name)],
        )
        self._check_tied_head(shards)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """See `Checkpoint`."""
        from transformers import PreTrainedTokenizerFast

        if not storage.exists(storage.join(self.uri, "tokenizer.json")):
            raise ConfigError(
                f"{self.uri}: a tokenizer.json is needed and there is none; write it there with "
                "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
            )
        with tempfile.TemporaryDirectory(prefix="layer-select-") as folder:
            for name in TOKENIZER_FILES:
                if (content := self.file(name)) is not None:
                    (Path(folder) / name).write_bytes(content)
            try:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            except Exception as error:  # the library raises bare Exceptions on a bad file
                raise ConfigError(f"{self.uri}: tokenizer.json cannot be read: {error}") from None
        return checked_tokenizer(tokenizer, self.config, self.uri)

    def file(self, name: str) -> bytes | None:
        """See `Checkpoint`."""
        place = storage.join(self.uri, name)
        return storage.read_bytes(place) if storage.exists(place) else None

    def _check_tied_head(self, shards: "Shards") -> None:
        # Some savers write a tied head out: harmless if it is the embedding, else one is lost.
        for name in [spelled for spelled in _head_spellings() if spelled in shards.infos]:
            if "lm_head.weight" not in self._tied:
                continue
            if not torch.equal(shards.read(name, None), self.tensor("lm_head.weight")):
                raise ConfigError(
                    f"{self.uri}: config.json says tie_word_embeddings: true, yet {name} differs "
                    "from the embedding; set tie_word_embeddings: false there if it is a head of "
                    "its own"
                )


class Shards:
    """All tensors of a folder; pairs of MXFP4 blocks and scales appear as the tensor they mean."""

    def __init__(self, uri: str) -> None:
        """Open every file's header.

        Raises:
            ConfigError: no safetensors file, a shard of the index is not there, a tensor is not
                where the index says, or a file is cut short.
        """
        self._files: dict[str, SafetensorsFile] = {}
        names = _weight_map(uri)
        opened = {
            shard: SafetensorsFile(storage.join(uri, shard))
            for shard in dict.fromkeys(names.values())
        } or {SINGLE: SafetensorsFile(storage.join(uri, SINGLE))}
        for shard, file in opened.items():
            listed = {name for name, place in names.items() if place == shard}
            if names and (absent := sorted(listed - set(file.infos))):
                raise ConfigError(
                    f"{storage.join(uri, INDEX)} promises {absent[0]} in {shard}, which does not "
                    "hold it; index and shards belong to different models"
                )
            self._files.update(dict.fromkeys(file.infos, file))
        infos = {name: file.infos[name] for name, file in self._files.items()}
        self._packed = packed(infos, uri)
        self.infos: dict[str, RawInfo] = {
            name: info
            for name, info in infos.items()
            if not any(name in pair for pair in self._packed.values())
        }
        for name, (blocks, _) in self._packed.items():
            experts, rows, groups, half = infos[blocks].shape
            shape = (experts, groups * half * 2, rows)
            self.infos[name] = RawInfo(shape, torch.float32, "MXFP4")

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor; see `RawTensors`."""
        if name not in self._packed:
            return self._files[name].read(name, dtype)
        blocks, scales = (self._files[part].read(part, None) for part in self._packed[name])
        return dequantised(blocks, scales, dtype or torch.float32)

    def blocks(self, name: str) -> bytes:
        """Blocks and scales; see `RawTensors`."""
        parts = (self._files[part].read(part, None) for part in self._packed[name])
        return b"".join(part.numpy().tobytes() for part in parts)


def _weight_map(uri: str) -> dict[str, str]:
    """Tensor → shard by the index; empty for one single file."""
    if storage.exists(storage.join(uri, SINGLE)):
        return {}
    place = storage.join(uri, INDEX)
    if not storage.exists(place):
        pickled = [n for n in storage.names(uri) if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        remedy = (
            f"{pickled[0]} is a pickle, which can run code and is not read: load it with "
            "AutoModelForCausalLM.from_pretrained and save_pretrained(FOLDER) again"
            if pickled
            else "save_pretrained(FOLDER) writes it"
        )
        raise ConfigError(f"{uri}: {SINGLE} or {INDEX} is needed, found neither; {remedy}")
    found = _json(place).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{place}: weight_map must map tensors to files, found {found!r}")
    for shard in dict.fromkeys(str(name) for name in found.values()):
        if "/" in shard or not storage.exists(storage.join(uri, shard)):
            raise ConfigError(f"{place} names {shard}, which is not in the folder; copy it there")
    return {str(name): str(shard) for name, shard in found.items()}


def _config(uri: str) -> Any:
    """The text decoder's configuration.

    Raises:
        ConfigError: no folder, no config.json, an unknown architecture, values that do not go
            together, or weights quantised in a way we do not read.
    """
    from transformers import CONFIG_MAPPING

    place = storage.join(uri, "config.json")
    if not storage.exists(place):
        raise ConfigError(
            f"{uri}: a Hugging Face folder with a config.json is needed, found "
            f"{'none in it' if storage.exists(uri) else 'no such folder'}; a GGUF file is opened "
            "with type: gguf, a model of Ollama's with type: ollama"
        )
    raw = _json(place)
    if raw.get("model_type") == "gemma3" and isinstance(raw.get("text_config"), dict):
        raw = {**raw["text_config"], "model_type": "gemma3_text"}  # the decoder beside the eyes
    family = by_model_type(str(raw.get("model_type")), place)
    method = (raw.pop("quantization_config", None) or {}).get("quant_method")
    if method not in (None, "mxfp4" if family.model_type == "gpt_oss" else None):
        raise ConfigError(
            f"{place}: weights quantised by {method} are not read; give the unquantised model, "
            "or a GGUF file"
        )
    try:
        config = CONFIG_MAPPING[family.model_type].from_dict(raw)
    except Exception as error:  # the library's checks raise classes of their own
        raise ConfigError(
            f"{place} is no valid {family.model_type} configuration: {error}"
        ) from None
    return config


def _json(place: str) -> Json:
    try:
        found = json.loads(storage.read_bytes(place))
    except ValueError as error:
        raise ConfigError(f"{place} must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{place} must hold a mapping, found {type(found).__name__}")
    return found


def _recipe(name: str, config: Any, there: Mapping[str, RawInfo]) -> Recipe:
    """Files hold experts together, as the modules do, or one by one, as most published ones do."""
    spelled = next((name for name in _spellings(name) if name in there), name)
    if spelled in there or not (match := _PER_EXPERT.match(name)):
        return Recipe((spelled,))
    if config.model_type != "qwen3_moe":
        return Recipe((spelled,))
    experts, projection = match.groups()
    count = range(config.num_experts)
    if projection == "down_proj":
        return Recipe(tuple(f"{experts}.{e}.down_proj.weight" for e in count), _stacked)
    parts = [f"{experts}.{e}.{part}_proj.weight" for part in ("gate", "up") for e in count]
    return Recipe(tuple(parts), _stacked_halves)


def _stacked(*parts: Tensor) -> Tensor:
    return torch.stack(parts)


def _stacked_halves(*parts: Tensor) -> Tensor:
    half = len(parts) // 2
    return torch.cat([torch.stack(parts[:half]), torch.stack(parts[half:])], dim=1)


def _spellings(name: str) -> list[str]:
    inner = name.removeprefix("model.")
    return [name, *(wrap + name for wrap in _WRAPPED), "model.language_model." + inner]


def _head_spellings() -> list[str]:
    return _spellings("lm_head.weight")


def _unneeded(name: str) -> bool:
    return bool(_NOT_TEXT.match(name) or _RECOMPUTED.search(name) or name in _head_spellings())


def open_folder(uri: str) -> HuggingFaceFolder:
    """Open a folder; see `HuggingFace.open`."""
    return HuggingFaceFolder(uri)
