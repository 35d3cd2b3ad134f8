"""What the verbs read beside their configuration and inputs, by digest: for stores of results."""

from layer_select.config import LayerSelectConfig
from rayrun.data.sequences import open_sequences


def histories(config: LayerSelectConfig) -> dict[str, str]:
    """The titles and events that `data:` takes.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    return {"data": open_sequences(config.data).digest}
