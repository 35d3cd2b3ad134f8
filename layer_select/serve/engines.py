"""`serve.engine`: the engine of a configuration, ready to run here."""

from typing import Any

import torch

from layer_select.serve.config import RecommenderServe, Transformers
from layer_select.serve.engine import Engine, TransformersEngine
from layer_select.sources import Checkpoint, load
from rayrun.config import ConfigError


def engine_of(checkpoint: Checkpoint, options: RecommenderServe) -> Engine:
    """Load the model into the engine that `options` name.

    Raises:
        ConfigError: there is no GPU where one is needed, vLLM is not installed, or the model is
            damaged or knows no such attention.
    """
    config = options.engine
    if not isinstance(config, Transformers):
        from layer_select.serve.vllm_engine import VllmEngine

        return VllmEngine(checkpoint, config)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "serve.engine.device is cuda, but no GPU is to be seen where the replica runs; set "
            "serve.gpus_per_replica: 1 on a machine with one, or serve.engine.device: cpu"
        )
    if device == "cpu":
        torch.set_num_threads(max(1, int(options.cpus_per_replica)))
    decoder = load(checkpoint, device=device, attention=attention_of(checkpoint.config, config))
    return TransformersEngine(
        decoder,
        batch_tokens=options.batch_tokens,
        prefix_cache_bytes=config.prefix_cache_bytes,
        lazy_kv=config.lazy_kv,
    )


def attention_of(config: Any, engine: Transformers) -> Any:
    """`sdpa`, or `eager` for a family that has no other (its sinks are no key of any token)."""
    return "eager" if config.model_type == "gpt_oss" else engine.attention
