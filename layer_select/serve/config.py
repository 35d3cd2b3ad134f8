"""The `serve:` section: where and how a recommender is served. It changes no result."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from rayrun.config import Config
from rayrun.ray.serve_options import ServeOptions


class Exact(Config):
    """h · Eᵀ over the whole catalogue."""

    type: Literal["exact"] = "exact"


class Faiss(Config):
    """An inverted file of faiss over 8-bit codes, its finds scored again exactly; read from the
    bundle (`export.index_above`), or built when a replica starts. Catalogues of at most `above`
    items are scored whole.
    """

    type: Literal["faiss"] = "faiss"
    above: NonNegativeInt = 1_000_000
    """Items above which the index is used."""
    lists: NonNegativeInt = 0
    """Cells that the items are divided into; 0: the square root of the number of items. An index in
    the bundle of another number is not used."""
    probes: PositiveInt = 128
    """Cells that are searched for one user."""
    refine: PositiveInt = 4
    """Times k items are found by their codes, and k of them kept by their exact scores."""


Index = Annotated[Exact | Faiss, Field(discriminator="type")]


class LazyKv(Config):
    """Which layers are lazy, and what they keep (`layer_select.serve.lazy_kv`)."""

    first: NonNegativeInt = 4
    recent: PositiveInt = 1024
    threshold: PositiveFloat | None = None
    """Share of the attention above which a layer is lazy; None: the family's; above 1: no layer."""


class Transformers(Config):
    """The model's own implementation in `transformers`; answers on a processor or a GPU."""

    type: Literal["transformers"] = "transformers"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU that `gpus_per_replica` gives, else the processor."""
    attention: Literal["eager", "sdpa"] = "sdpa"
    """`eager` for families that have no other (gpt-oss)."""
    prefix_cache_bytes: NonNegativeInt = 256 << 20
    """Keys and values of recent prompts that a longer prompt may continue; 0: none are kept."""
    lazy_kv: LazyKv | None = None
    """Of held prompts longer than first + recent tokens, lazy layers keep those alone, so that more
    of them are held. Who continues such a prompt is answered approximately; off unless it is set.
    """


class Vllm(Config):
    """vLLM as the engine: needs a GPU and the extra `vllm`."""

    type: Literal["vllm"] = "vllm"
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Of the GPU's memory, for weights and its own prefix cache."""


Engine = Annotated[Transformers | Vllm, Field(discriminator="type")]


class RecommenderServe(ServeOptions):
    """How `layer-select serve` and `layer-select deploy` serve a bundle."""

    engine: Engine = Transformers()
    """What computes h, the last hidden state of a prompt."""
    index: Index = Faiss()
    """How the nearest items to h are found."""
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0
    max_history_items: PositiveInt = 10_000
    """Items of one request's history; more is 413. The prompt takes the latest that fit."""
    max_candidates: PositiveInt = 100_000
    """Candidates one request may name; more is 422."""
    batch_tokens: PositiveInt = 8192
    """Tokens of one forward pass, over the requests that wait together."""
