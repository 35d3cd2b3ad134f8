"""What every model config offers, INFNet and rivals alike: a network from a schema. The union is `infnet.baselines`."""

from torch import nn

from infnet.schema import Schema
from rayrun.config import Config


class BaseModel(Config):
    """Base of the model configs: `build` makes a network that maps `Inputs` to logits of every task."""

    def build(self, schema: Schema) -> nn.Module:
        """A network with `forward(inputs: Inputs) -> dict[str, Tensor]`, freshly initialised.

        Raises:
            ConfigError: the schema lacks what this model needs.
        """
        raise NotImplementedError

    def table_copies(self, schema: Schema) -> int:
        """How many embeddings each id has side by side (models with one table per task need more than 1)."""
        return 1
