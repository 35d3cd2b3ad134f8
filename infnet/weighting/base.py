"""What a weighting must offer. One file per weighting; the union in `__init__` is the registry."""

from collections.abc import Mapping

from torch import nn

from infnet.tasks import BaseTask
from rayrun.config import Config


class BaseWeighting(Config):
    """Base of the weighting configs."""

    def build(self, tasks: Mapping[str, BaseTask]) -> nn.Module:
        """A module with `forward(losses: dict[str, Tensor], share: float = 1.0) -> Tensor`."""
        raise NotImplementedError
