"""Recommender bundle: a language model and a catalogue, and all it needs to recommend.

manifest.json             kind `layer_select.bundle`: digests of the files below
model/                    a Hugging Face folder, with `item_head.safetensors` (P) where there is one
model.gguf  Modelfile     the same model for Ollama and llama.cpp, unless `export.gguf: none`
item_vectors.safetensors  v_i, mean title embedding · P (see `item_vectors`)
items.parquet             row i: the `item` of vector i, its id in the source, and its `title`
index.faiss               cells and codes of the item vectors, above `export.index_above` items
prompt.json               how a history becomes a prompt
sample.json               a request and the answer to it, by which a bundle proves itself
config.yaml  result.json  report.html       how it was made; not part of its digest
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import PositiveInt
from torch import Tensor

from layer_select.export import item_vectors
from layer_select.task.config import HeadTask, Prompt
from rayrun import manifest, storage
from rayrun.config import Config, ConfigError, Json, validate

KIND = "layer_select.bundle"
FORMAT_VERSION = 1

MODEL, GGUF, MODELFILE = "model", "model.gguf", "Modelfile"
ITEMS, PROMPT, SAMPLE = "items.parquet", "prompt.json", "sample.json"
INDEX = "index.faiss"

TOP_K = 10
"""Items of the sample's answer."""
TOLERANCE = 1e-4
"""Largest difference of two scores that count as equal, relative above 1."""

BROKEN = (
    "the bundle or this installation is broken: export again, or compare the versions in its "
    "manifest"
)


class HistoryPrompt(Config):
    """How a history becomes a prompt; keys as under `task:`."""

    prompt: Prompt
    max_history: PositiveInt
    max_tokens: PositiveInt

    def task(self) -> HeadTask:
        """A task that asks like this, for `layer_select.task.prompts.Prompts`."""
        return HeadTask(
            prompt=self.prompt, max_history=self.max_history, max_tokens=self.max_tokens
        )


class Bundle:
    """An open bundle: verified, its catalogue in memory. The model is opened by who runs it:
    `open_model(None, bundle.model)`.
    """

    model: str
    """The Hugging Face folder, on this machine."""
    gguf: Path | None
    """The GGUF file, where there is one."""
    index: Path | None
    """The index of the item vectors, where there is one."""
    items: Sequence[str]
    """Id of each item."""
    titles: Sequence[str]
    vectors: Float[Tensor, "I D"]
    """float32, also where they are kept as int8."""
    prompt: HistoryPrompt
    digest: str
    """`sha256:…` of the content: the version of the model."""
    sample: Json
    """`{"request": {"history": [item ids], "k"}, "answer": [{"item", "title", "score"}]}`, of the
    full catalogue."""
    config: Json
    """The resolved configuration that it was exported with, as plain data."""
    info: Json
    """`info` of the manifest: digest of the model, its layers, the full model it was cut from."""

    def __init__(self, uri: str) -> None:
        """See `read`."""
        self.uri = uri
        # A remote bundle's copy lives as long as the bundle.
        self._scratch = TemporaryDirectory(prefix="bundle-")
        found = manifest.read(uri, kind=KIND, format_version=FORMAT_VERSION)
        local = storage.fetch(uri, Path(self._scratch.name))
        manifest.verify(str(local))
        self.digest, self.config, self.info = found.content_digest, found.config, found.info
        self.model = str(local / MODEL)
        self.gguf = local / GGUF if (local / GGUF).exists() else None
        self.index = local / INDEX if (local / INDEX).exists() else None
        self.prompt = validate(HistoryPrompt, _json(local / PROMPT), where=f"{uri}/{PROMPT}")
        self.sample = _json(local / SAMPLE)
        self.items, self.titles = read_items(local / ITEMS)
        where = f"{uri}/{item_vectors.FILE}"
        self.vectors = item_vectors.read((local / item_vectors.FILE).read_bytes(), where)
        if len(self.items) != len(self.vectors):
            raise ConfigError(
                f"{where} must hold a vector for each of the {len(self.items)} items of {ITEMS}, "
                f"found {len(self.vectors)}: they are of two catalogues; export again"
            )

    @classmethod
    def read(cls, uri: str) -> "Bundle":
        """Fetch and verify the bundle at `uri`.

        Args:
            uri: output directory of `layer-select export`, a path or `s3://` URI.

        Raises:
            ConfigError: no bundle there, a newer format, a file that is missing or damaged, or
                parts of two catalogues.
        """
        return cls(uri)

    def numbers(self) -> dict[str, int]:
        """Item id → row of `vectors`."""
        return {item: number for number, item in enumerate(self.items)}

    def check_sample(self, answer: Sequence[Json]) -> None:
        """Compare an answer to `sample["request"]` with the one that was stored.

        Args:
            answer: `{"item", "score"}` of the best, the best first.

        Raises:
            ConfigError: another item in a place whose score is not a tie, or another score.
        """
        expected: list[Json] = self.sample["answer"]
        if len(answer) != len(expected):
            raise ConfigError(
                f"{self.uri} does not reproduce its own sample: {len(expected)} items are "
                f"expected, found {len(answer)}; {BROKEN}"
            )
        last = float(expected[-1]["score"]) if expected else 0.0
        for place, (own, wanted) in enumerate(zip(answer, expected, strict=True), start=1):
            score, stored = float(own["score"]), float(wanted["score"])
            # items of one score may change places: rounding then decides which is first
            tied = [e["item"] for e in expected if _close(float(e["score"]), stored)]
            same = own["item"] in tied or _close(stored, last)
            if not (_close(score, stored) and same):
                raise ConfigError(
                    f"{self.uri} does not reproduce its own sample: place {place} must be item "
                    f"{wanted['item']!r} with {stored:.6f} to {TOLERANCE:g}, found "
                    f"{own['item']!r} with {score:.6f}; {BROKEN}"
                )


def _close(found: float, expected: float) -> bool:
    return abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))


def best(
    scores: Float[Tensor, "B I"], k: int = TOP_K
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """The k best scores and their items; equal scores in the order of the catalogue."""
    found, order = scores.sort(dim=-1, descending=True, stable=True)
    return found[:, :k], order[:, :k]


def write_items(path: Path, items: Sequence[str], titles: Sequence[str]) -> None:
    """`items.parquet`."""
    pa: Any = importlib.import_module("pyarrow")
    pq: Any = importlib.import_module("pyarrow.parquet")
    table = pa.table({"item": pa.array(items, pa.string()), "title": pa.array(titles, pa.string())})
    pq.write_table(table, path)


def read_items(path: Path) -> tuple[list[str], list[str]]:
    """Ids and titles of `items.parquet`.

    Raises:
        ConfigError: damaged, or without one of the columns.
    """
    pa: Any = importlib.import_module("pyarrow")
    pq: Any = importlib.import_module("pyarrow.parquet")
    try:
        table = pq.read_table(path, columns=["item", "title"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the bundle again") from None
    if table.column_names != ["item", "title"]:
        raise ConfigError(
            f"{path} must have the columns item and title, found {table.column_names}; export the "
            "bundle again"
        )
    return table["item"].to_pylist(), table["title"].to_pylist()


def write_parts(
    directory: Path,
    *,
    items: Sequence[str],
    titles: Sequence[str],
    vectors: bytes,
    prompt: HistoryPrompt,
    sample: Json,
) -> None:
    """Everything of the layout but the models and what tells of the run.

    Args:
        directory: a staging directory.
        items: id of each item.
        titles: of each item.
        vectors: of `item_vectors.written`.
        prompt: how histories are asked.
        sample: see `Bundle.sample`.
    """
    (directory / item_vectors.FILE).write_bytes(vectors)
    write_items(directory / ITEMS, items, titles)
    _write_json(directory / PROMPT, prompt.to_dict())
    _write_json(directory / SAMPLE, sample)


def top(
    items: Sequence[str], titles: Sequence[str], scores: Float[Tensor, " I"], k: int = TOP_K
) -> list[Json]:
    """An answer: the k best as `{"item", "title", "score"}`."""
    values, order = best(scores[None].detach().to("cpu", torch.float32), k)
    return [
        {"item": items[number], "title": titles[number], "score": score}
        for number, score in zip(order[0].tolist(), values[0].tolist(), strict=True)
    ]


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _json(path: Path) -> Json:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); export the bundle again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a mapping; export the bundle again")
    return found
