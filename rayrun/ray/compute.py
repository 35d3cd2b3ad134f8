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
    """`HOST:PORT` of the head (its GCS): this process joins the cluster as a driver. `auto`: the
    cluster this process runs in. `http://HOST:8265`, the dashboard: the verb runs there as a job;
    its log is followed here, and Ctrl-C stops it."""
    working_dir: str = "auto"
    """What a job is sent, with an http address only. `auto`: the checkout this command runs from,
    nothing where its packages are installed. Empty: nothing, the cluster has the packages. Else a
    folder, or the URI of a zip file."""

    @model_validator(mode="after")
    def _sent_with_a_job(self) -> "AttachedCompute":
        if self.working_dir != "auto" and not self.takes_jobs:
            raise ValueError(
                "working_dir is sent with a job, so address must be http://HOST:8265 or https://…, "
                f"found {self.address}; remove working_dir"
            )
        return self

    @property
    def takes_jobs(self) -> bool:
        """Whether the address is a dashboard, which runs verbs as jobs."""
        return self.address.startswith(("http://", "https://"))


Compute = Annotated[LocalCompute | AttachedCompute, Field(discriminator="type")]
