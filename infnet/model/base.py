"""What every model config offers, INFNet and rivals alike: a network from a schema."""

from torch import nn

from infnet.schema import Schema
from rayrun.config import Config


class BaseModel(Config):
    """Base of the model configs; their union is `infnet.baselines.Model`."""

    def build(self, schema: Schema) -> nn.Module:
        """A network with `forward(inputs: Inputs) -> dict[str, Tensor]`, freshly initialised.

        Raises:
            ConfigError: the schema lacks what this model needs.
        """
        raise NotImplementedError

    def table_copies(self, schema: Schema) -> int:
        """Embeddings of each id side by side: more than 1 for a table per task, 0 for no tables."""
        return 1

    def shares_histories(self) -> bool:
        """Whether rows that follow each other can be given one history, instead of copies of it.

        The sequences of `Inputs` then may have H rows, a divisor of the B rows of everything else.
        Worth it where a network does less for each (row, event) than for each event.
        """
        return False
