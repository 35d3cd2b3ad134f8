"""What the verbs read beside their configuration and inputs, by digest: for stores of results."""

from layer_select.config import LayerSelectConfig
from layer_select.sources import open_model
from rayrun.data.sequences import open_sequences


def histories(config: LayerSelectConfig) -> dict[str, str]:
    """The titles and events that `data:` takes.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    return {"data": open_sequences(config.data).digest}


def to_score(config: LayerSelectConfig) -> dict[str, str]:
    """The histories, and the model by its content; where none is named, what makes it.

    Raises:
        ConfigError: one of them is not there or cannot be read.
    """
    if config.model is None and not config.inputs.model:
        return {**histories(config), "pretrain": config.digest(["pretrain"])}
    return {**histories(config), "model": open_model(config.model, config.inputs.model).digest}
