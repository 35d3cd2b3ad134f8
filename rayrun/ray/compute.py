"""Where a run runs, and with how much: `compute:` of every configuration. It never changes a
result.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from rayrun.config import Config


class _Workers(Config):
    workers: int = 1
    """Equal worker processes of a training or analysis run."""
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    @model_validator(mode="after")
    def _counts_are_possible(self) -> "_Workers":
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, found {self.workers}")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ValueError(
                "cpus_per_worker must be above 0 and gpus_per_worker at least 0, found "
                f"{self.cpus_per_worker} and {self.gpus_per_worker}"
            )
        return self


class LocalCompute(_Workers):
    """A Ray instance of our own on this machine, started for the run and stopped after it."""

    type: Literal["local"] = "local"
    num_cpus: PositiveInt | None = None
    """CPUs Ray may count on; absent: what the machine has."""
    object_store_bytes: PositiveInt | None = None
    """Shared memory for Ray's objects; absent: Ray's default. More spills to disk."""


class AttachedCompute(_Workers):
    """A Ray cluster that is already there; it is left running."""

    type: Literal["attached"] = "attached"
    address: str = "auto"


Compute = Annotated[LocalCompute | AttachedCompute, Field(discriminator="type")]
