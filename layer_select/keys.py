"""What the verbs read beside their configuration and inputs, by digest: for stores of results."""

from layer_select.config import LayerSelectConfig
from layer_select.opened import open_checkpoint
from layer_select.sources import Checkpoint, open_model
from layer_select.task.head import ITEM_HEAD
from layer_select.task.rating import RATING_HEAD
from rayrun.config import digest_of
from rayrun.data.sequences import open_sequences
from rayrun.manifest import content_of


def histories(config: LayerSelectConfig) -> dict[str, str]:
    """The titles and events that `data:` takes.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    return {"data": open_sequences(config.data).digest}


def heads_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Digests of the heads that lie beside a model and are no part of it."""
    found = {name: checkpoint.file(name) for name in (ITEM_HEAD, RATING_HEAD)}
    return {name: digest_of(head.hex()) for name, head in found.items() if head is not None}


def to_score(config: LayerSelectConfig) -> dict[str, str]:
    """The histories, and the model by its content with its heads; where none is named, what makes
    it.

    Raises:
        ConfigError: one of them is not there or cannot be read.
    """
    if config.model is None and not config.inputs.model:
        return {**histories(config), "pretrain": config.digest(["pretrain"])}
    checkpoint = open_checkpoint(config)
    return {**histories(config), "model": checkpoint.digest, **heads_of(checkpoint)}


def to_export(config: LayerSelectConfig) -> dict[str, str]:
    """The histories, and the model that leaves with its item head: the smaller one, where there is
    one.

    Raises:
        ConfigError: one of them is not there or cannot be read.
    """
    if not config.inputs.student:
        if config.model is None and not config.inputs.model:
            return to_score(config)
        checkpoint = open_checkpoint(config)
    else:
        checkpoint = open_model(None, config.inputs.student)
    return {**histories(config), "model": checkpoint.digest, **heads_of(checkpoint)}


def to_embed(config: LayerSelectConfig) -> dict[str, str]:
    """As `to_export`; or the histories and the bundle by its content.

    Raises:
        ConfigError: one of them is not there or cannot be read.
    """
    if config.inputs.bundle:
        return {**histories(config), "bundle": content_of(config.inputs.bundle)}
    return to_export(config)
