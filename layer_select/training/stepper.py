"""Stepper: how one optimizer step is taken."""

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor

from layer_select.training.learner import Batch
from rayrun.config import ConfigError


class Stepper(ABC):
    """Passes, gradients of all workers, and the optimizer."""

    halved_to = 0
    """Rows of a pass where a GPU's memory had no room for what was asked; 0: it had."""

    @abstractmethod
    def step(self, batch: Batch, rate: float) -> Tensor:
        """One optimizer step; the losses of the whole batch, the same on every worker."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write this worker's part of the state."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Continue from a state.

        Raises:
            ConfigError: damaged, or of another model.
        """

    @abstractmethod
    def finish(self) -> None:
        """Leave the trained weights in the learner, whole."""


def damaged(place: Path, error: Exception) -> ConfigError:
    """What is said of a state that cannot be read."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"the training state {place} is damaged or of another model ({reason}); remove it and "
        "start again"
    )
