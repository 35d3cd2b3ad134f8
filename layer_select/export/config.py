"""The `export:` and `embed:` sections: in which forms a recommender leaves, and its vectors."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from rayrun.config import Config


class Export(Config):
    """What `layer-select export` writes."""

    gguf: Literal["F32", "F16", "BF16", "Q8_0", "none"] = "F32"
    """Type of the matrices in `model.gguf`, which Ollama and llama.cpp read; `none`: no such file
    (some models GGUF cannot say)."""
    vectors: Literal["float32", "int8"] = "float32"
    """Of the item vectors; int8 with one scale for each item is a quarter as large."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Of the weights in the Hugging Face folder."""
    shard_bytes: PositiveInt = 4 << 30
    """Largest file of weights in the Hugging Face folder."""
    index_above: NonNegativeInt = 1_000_000
    """Items above which the bundle holds the index of `serve.index: {type: faiss}`, which a replica
    otherwise builds when it starts (minutes, where there are millions)."""


class Embed(Config):
    """What `layer-select embed` writes."""

    users: bool = True
    """Vectors of users too: the last hidden state after their training history."""
    normalise: bool = False
    """Vectors of length 1."""
