"""One trial: cost of the model, then training with each seed, in this process or on Ray Train."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from infnet.config import InfnetConfig, SingleStrategy
from infnet.schema import Schema
from infnet.train import loop, prepared
from infnet.tune.config import LatencyObjective, MetricObjective
from infnet.tune.cost import Cost, cost_of
from infnet.tune.points import with_values
from rayrun import storage
from rayrun.config import ConfigError, Json, validate
from rayrun.metrics import Metrics
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.trial import Trial
from rayrun.ray.worker import SingleWorker, Worker

SECONDS = "train_s"


def run_trial(trial: Trial, argument: Json) -> tuple[Mapping[str, float | None], Json]:
    """Train the configuration of a point with each of `tune.seeds`.

    Only the first seed reports its evaluations, by which the search may give the trial up.

    Args:
        trial: the point.
        argument: `config` of the search, and `dataset`, where it is prepared.

    Returns:
        The mean of each objective over the seeds; `cost` and, by seed, the result of the training.

    Raises:
        ConfigError: the point cannot be trained, or an objective is not defined.
    """
    whole = validate(InfnetConfig, argument["config"], where="the configuration of the search")
    dataset = str(argument["dataset"])
    schema = prepared.schema_of(dataset)
    config = with_values(whole, trial.values)
    cost = cost_of(config, schema, dataset, _device(config))
    seeds: Json = {}
    for number, seed in enumerate(whole.tune.seeds):
        place = storage.join(trial.folder, f"seed-{seed}")
        run = _Run(trial, _seeded(config, seed), cost, dataset, place, report=number == 0)
        seeds[str(seed)] = run.result(schema)
    means: dict[str, float | None] = {}
    for name in trial.objectives:
        values = [found["objectives"][name] for found in seeds.values()]
        means[name] = sum(values) / len(values)
    storage.remove(trial.folder)  # the weights; what was found is in the record
    return means, {"cost": cost._asdict(), "seeds": seeds}


def objectives_of(config: InfnetConfig, metrics: Metrics, cost: Cost) -> dict[str, float | None]:
    """Each objective by name, from validation metrics and cost; None: not defined."""
    found: dict[str, float | None] = {}
    for objective in config.tune.objectives:
        if isinstance(objective, MetricObjective):
            found[objective.name] = _metric(objective, metrics)
        elif isinstance(objective, LatencyObjective):
            found[objective.name] = cost.latency
        else:
            found[objective.name] = float(cost.parameters)
    return found


def _metric(objective: MetricObjective, metrics: Metrics) -> float | None:
    rows = [metrics[objective.task]] if objective.task else list(metrics.values())
    values = [v for row in rows if (v := row.get(objective.metric)) is not None]
    return sum(values) / len(values) if values else None


def _device(config: InfnetConfig) -> torch.device:
    return torch.device("cuda" if config.compute.gpus_per_worker else "cpu")


def _seeded(config: InfnetConfig, seed: int) -> InfnetConfig:
    """What one training of a trial is: one seed, no rivals, `tune.workers` workers."""
    train = config.train.model_copy(update={"seed": seed})
    if config.tune.workers == 1:
        train = train.model_copy(update={"strategy": SingleStrategy()})
    compute = config.compute.model_copy(update={"workers": config.tune.workers})
    return config.model_copy(update={"train": train, "compute": compute, "rivals": {}})


class _Run:
    """The training of one seed."""

    def __init__(
        self,
        trial: Trial,
        config: InfnetConfig,
        cost: Cost,
        dataset: str,
        place: str,
        *,
        report: bool,
    ) -> None:
        self.trial, self.config, self.cost = trial, config, cost
        self.dataset, self.place, self.reports = dataset, place, report

    def result(self, schema: Schema) -> Json:
        """Train it, or what is left of it."""
        found = self._alone(schema) if self.config.compute.workers == 1 else self._on_ray()
        objectives = objectives_of(self.config, found["metrics"], self.cost)
        for name, value in objectives.items():
            if value is None:
                raise ConfigError(
                    f"the objective {name} must be defined in every trial, found none in the best "
                    f"evaluation with {self.trial.values}; choose another objective"
                )
        keys = ("metrics", "best_step", "steps", "stopped_early", SECONDS, "peak_memory_bytes")
        return {"objectives": objectives, **{key: found[key] for key in keys}}

    def evaluated(self, steps: int, metrics: Metrics) -> None:
        """Tell the search of an evaluation."""
        self.trial.report(objectives_of(self.config, metrics, self.cost), at=steps)

    def _alone(self, schema: Schema) -> Json:
        """In this process. On a local disk, another attempt goes on from the last checkpoint."""
        with tempfile.TemporaryDirectory(prefix="trial-") as scratch:
            folder = storage.local_path(self.place) or Path(scratch)
            worker = SingleWorker(folder / "state", _device(self.config))
            place = loop.Place(self.dataset, str(folder / "run"))
            evaluated = self.evaluated if self.reports else loop.nothing
            return loop.fit(worker, self.config, schema, place, evaluated=evaluated)

    def _on_ray(self) -> Json:
        """With several workers, a Ray Train of its own below this process."""
        argument = {
            "config": self.config.to_dict(),
            "dataset": self.dataset,
            "out": storage.join(self.place, "run"),
            "cost": self.cost._asdict(),
            "trial": vars(self.trial) | {"objectives": list(self.trial.objectives)},
            "report": self.reports,
        }
        return run_on_ray(
            _on_worker,
            argument,
            compute=self.config.compute,
            storage_path=self.place,
            name="state",
            max_failures=self.config.train.max_failures,
            title=f"trial {self.trial.id}",
            callbacks=[self.trial.forwarding()],
        )


def _on_worker(worker: Worker, argument: Json) -> Json:
    config = validate(InfnetConfig, argument["config"], where="the configuration of the trial")
    given = argument["trial"]
    trial = Trial(**{**given, "objectives": tuple(given["objectives"])})
    cost = Cost(**argument["cost"])
    place = loop.Place(dataset=argument["dataset"], out=argument["out"])

    def evaluated(steps: int, metrics: Metrics) -> None:
        objectives = objectives_of(config, metrics, cost)
        # every worker reports; the first one's metrics are passed on, and it alone writes them down
        told = trial.note(objectives, at=steps) if worker.rank == 0 else {}
        worker.report({name: float(value) for name, value in told.items()})

    schema = prepared.schema_of(place.dataset)
    told = evaluated if argument["report"] else loop.nothing
    return loop.fit(worker, config, schema, place, evaluated=told)
