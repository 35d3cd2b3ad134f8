"""Plans: what `--dry-run` prints. Inputs are opened, models built on `meta`, nothing is written."""

import torch

from infnet.config import InfnetConfig
from infnet.data.prepare import open_reader
from infnet.model.recommender import Recommender
from infnet.schema import Schema
from infnet.train.arithmetic import batch_arithmetic
from rayrun import storage


def plan_prepare(config: InfnetConfig, out: str) -> str:
    """The log, its roles and what must be computed over it.

    Raises:
        ConfigError: the log cannot be opened, lacks a column, or cannot be split.
    """
    reader = open_reader(config)
    log, fragments, demands = reader.log, reader.fragments, reader.features.demands()
    roles = ", ".join(f"{role}={column}" for role, column in log.columns.names().items())
    return "\n".join(
        [
            f"# {config.digest()}",
            config.to_yaml(),
            f"log: {len(fragments)} fragments, {len(log.schema)} columns; roles: {roles or 'none'}",
            f"split: {config.data.split.type}; statistics: {config.data.statistics}",
            f"features: {len(config.features)}; to fit: {len(demands.vocabularies)} vocabularies, "
            f"{len(demands.histories)} histories, {len(demands.statistics)} statistics",
            f"tasks: {', '.join(f'{n} ({t.type})' for n, t in config.tasks.items())}",
        ]
    )


def plan_train(config: InfnetConfig, out: str, split: str = "test") -> str:
    """The batch arithmetic, and the size of every model where the data is prepared already.

    Raises:
        ConfigError: the batch does not divide, no data, or a model does not fit the schema.
    """
    arithmetic = batch_arithmetic(
        batch_size=config.train.batch_size,
        workers=config.compute.workers,
        micro_batch_size=config.train.micro_batch_size,
        lanes=config.train.lanes,
    )
    lines = [f"batch_size: {arithmetic}", f"strategy: {config.train.strategy.type}"]
    if not config.inputs.data:
        return "\n".join(
            [plan_prepare(config, out), *lines, "data: not prepared yet; train prepares it first"]
        )
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        place = storage.fetch(storage.join(config.inputs.data, "schema.json"), Path(scratch))
        schema = Schema.read(place)
    for name, model in {"model": config.model, **config.rivals}.items():
        with torch.device("meta"):
            recommender = Recommender(model, schema)
        dense = sum(p.numel() for p in recommender.network.parameters())
        tables = sum(p.numel() for p in recommender.tables.parameters())
        lines.append(f"{name} ({model.type}): {dense:,} dense and {tables:,} embedding parameters")
    return "\n".join([f"# {config.digest()}", config.to_yaml(), *lines])


def plan_tune(config: InfnetConfig, out: str) -> str:
    """The points of the search, and the plan of their training.

    Raises:
        ConfigError: the space or an objective does not fit; as `plan_train`.
    """
    from infnet.tune.points import plan_of, sets

    plan = plan_of(config)
    points = plan.points()
    known = "chosen by optuna as it goes" if points is None else f"{len(points)} points"
    lines = [
        f"search: {known}, at most {plan.trials} trials of {len(config.tune.seeds)} seeds; "
        f"scheduler {plan.scheduler.type}; objectives {', '.join(plan.objectives)}",
        *(f"  {' '.join(sets(point))}" for point in points or []),
    ]
    return "\n".join([plan_train(config, out), *lines])
