"""What `score`, `select` and whoever follows open first: the model and the task of a configuration.

config = with_model(config, out)             # made by `pretrain:` where no model is named
opened = open_inputs(config)
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.importance.execution import Execution
from layer_select.importance.zero3 import Zero3Decoder
from layer_select.places import absolute, use_data_root
from layer_select.sources import Checkpoint, load, open_model, stream
from layer_select.sources.beside import Beside
from layer_select.sources.skeleton import Attention
from layer_select.task.head import ITEM_HEAD
from layer_select.task.rating import RATING_HEAD
from layer_select.task.run import RecommendationTask, open_task
from rayrun import storage
from rayrun.config import ConfigError, Json, validate
from rayrun.ray.worker import Worker

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Opened:
    """A model at rest and what is asked of it."""

    checkpoint: Checkpoint
    task: RecommendationTask

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the model and of the task; the model is read once for it."""
        return {"model": self.checkpoint.digest, "task": self.task.digest}


def with_model(config: LayerSelectConfig, out: str) -> LayerSelectConfig:
    """The configuration with a model: where none is named, the one that `pretrain:` makes.

    Its paths are absolute from here on.

    Args:
        config: the whole run.
        out: of the verb; the model made is kept beside it, or in `config.cache`.

    Raises:
        ConfigError: neither a model nor `pretrain:` is given, or pretraining fails.
    """
    config = absolute(config)
    if config.model is not None or config.inputs.model:
        return config
    if config.pretrain is None:
        raise ConfigError(
            "a model is needed and none is given: set model: {type: hf, path: FOLDER}, or --set "
            "inputs.model=FOLDER (a .gguf file or ollama:NAME will do as well), or add pretrain: "
            "to have a small one made"
        )
    from layer_select.pretrain.run import pretrained

    inputs = config.inputs.model_copy(update={"model": pretrained(config, out)})
    return config.model_copy(update={"inputs": inputs})


def open_inputs(config: LayerSelectConfig) -> Opened:
    """Open the model (headers only) and the task.

    Raises:
        ConfigError: the model is missing, damaged or unknown, or the data or the task do not fit.
    """
    checkpoint = open_checkpoint(config)
    task = open_task(
        config.data,
        config.task,
        tokenizer=checkpoint.tokenizer(),
        vocab_size=int(checkpoint.config.vocab_size),
        item_head=checkpoint.file(ITEM_HEAD) if config.task.type == "head" else None,
        rating_head=checkpoint.file(RATING_HEAD) if config.task.type == "rating" else None,
    )
    if config.task.type == "rating":
        task.rating_head(int(checkpoint.config.hidden_size), checkpoint.where)
    return Opened(checkpoint, task)


def open_checkpoint(config: LayerSelectConfig) -> Checkpoint:
    """The model (headers only); for ratings with the head of `inputs.rating_head` beside it.

    Raises:
        ConfigError: one of them is missing, damaged or unknown.
    """
    checkpoint = open_model(config.model, config.inputs.model)
    if config.task.type != "rating" or not config.inputs.rating_head:
        return checkpoint
    return Beside(checkpoint, {RATING_HEAD: fitted_head(config.inputs.rating_head)})


def fitted_head(place: str) -> bytes:
    """`rating_head.safetensors` in the output of `layer-select fit-head`.

    Raises:
        ConfigError: there is no such output.
    """
    uri = storage.join(place, RATING_HEAD)
    if not storage.exists(uri):
        raise ConfigError(
            f"inputs.rating_head is {place}, but there is no {RATING_HEAD} in it; make one with "
            "`layer-select fit-head CONFIG --out DIR`"
        )
    return storage.read_bytes(uri)


def open_on_worker(worker: Worker, argument: Json, task: str) -> tuple[LayerSelectConfig, Opened]:
    """The configuration of a run and its inputs, opened on one of its workers.

    Args:
        worker: of the run.
        argument: `config`; `infnet_data`, where named sources are.
        task: digest of the task where the run was started.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    use_data_root(argument["infnet_data"])
    config = validate(LayerSelectConfig, argument["config"], where="the configuration of the run")
    if worker.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_worker)))
    opened = open_inputs(config)
    if opened.task.digest != task:
        raise ConfigError(
            f"the task differs between the machines of the run: {task} where it was started, "
            f"{opened.task.digest} on worker {worker.rank}; give all workers the same data"
        )
    return config, opened


def decoder_of(
    checkpoint: Checkpoint,
    execution: Execution,
    *,
    dtype: str,
    device: torch.device,
    attention: Attention = "eager",
) -> Decoder:
    """The decoder as `score.execution` wants it. With `zero3` a collective.

    Raises:
        ConfigError: a tensor cannot be read.
    """
    kind = DTYPES[dtype]
    if execution.type == "whole":
        decoder = load(checkpoint, dtype=kind, device=device, attention=attention)
    else:
        decoder = stream(checkpoint, dtype=kind, device=device, attention=attention)
    if kind == torch.float64:  # grouped products of experts know no float64
        decoder.config._experts_implementation = "eager"
    return Zero3Decoder(decoder, device) if execution.type == "zero3" else decoder
