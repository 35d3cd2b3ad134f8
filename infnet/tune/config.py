"""`tune:` of a configuration: what `infnet tune` tries, and what is good."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from rayrun.config import Config
from rayrun.ray.space import AshaScheduler, RandomSearcher, Scheduler, SearchBy, Space


class MetricObjective(Config):
    """A validation metric of the best checkpoint of a trial."""

    type: Literal["metric"] = "metric"
    metric: str = "auc"
    task: str = ""
    """Of this task. Empty: the mean over all tasks that have the metric."""

    @property
    def name(self) -> str:
        """As in tables: `auc`, `click.auc`."""
        return f"{self.task}.{self.metric}" if self.task else self.metric


class LatencyObjective(Config):
    """Time of a forward pass, as a multiple of that of the floor on the same rows in the same
    process: a ratio means the same on every machine.
    """

    type: Literal["latency"] = "latency"

    @property
    def name(self) -> str:
        """As in tables."""
        return "latency"


class ParametersObjective(Config):
    """Parameters of the network, embedding tables apart: fewer are better."""

    type: Literal["parameters"] = "parameters"

    @property
    def name(self) -> str:
        """As in tables."""
        return "parameters"


Objective = Annotated[
    MetricObjective | LatencyObjective | ParametersObjective, Field(discriminator="type")
]


class Tune(Config):
    """A search over values of this configuration, by their dotted paths."""

    space: Literal["proxies"] | Space = "proxies"
    """What to try: an entry per dotted path below `model` or `train`. `proxies`: the counts of
    INFNet's proxies that there are: m (`model.num_categorical_proxies`) of 1, 2, 4, 8, k
    (`model.num_sequence_proxies`), N_s (`model.num_shared_tokens`) and, where task proxies are
    pooled, m_task (`model.task_proxies.count`) of 1, 2, 4."""
    searcher: SearchBy = RandomSearcher()
    scheduler: Scheduler = AshaScheduler()
    """When a trial is given up. It goes by the first objective at the evaluations of the first
    seed."""
    trials: PositiveInt = 12
    """Points at most."""
    max_seconds: NonNegativeFloat = 0.0
    """No trial starts after so long, those under way go on; 0: no limit."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; a point that is not given up is trained with each, one after another. Their
    spread says which points the data can tell apart."""
    objectives: tuple[Objective, ...] = (MetricObjective(),)
    """The best point is the best by the first; with several, the report has the Pareto front."""
    latency_rows: PositiveInt = 256
    """Rows of the forward pass that is timed."""
    workers: PositiveInt = 1
    """Workers of one trial. With one, `train.strategy` counts as `single`, which takes the same
    steps, and processes are used again; with more, each trial starts a Ray Train of its own."""
    max_concurrent: PositiveInt | None = None
    """Trials at once; absent: as many as there are CPUs for."""

    @model_validator(mode="after")
    def _lists_are_possible(self) -> "Tune":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be at least one, each once, found {list(self.seeds)}")
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"objectives must be at least one, each once, found {names}")
        if not self.space:
            raise ValueError(
                "space must name at least one path, such as `model.num_categorical_proxies: "
                "{type: choice, values: [2, 4, 8]}`, found none"
            )
        return self
