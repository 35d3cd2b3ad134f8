"""The points of a search as configurations; what is wrong with a space is told before any trial."""

import difflib
import json
from collections.abc import Mapping
from typing import Literal

from infnet.config import InfnetConfig
from infnet.features.sequence import SequenceFeature
from infnet.model.infnet import INFNetConfig, PooledTaskProxies
from infnet.train.journal import LOWER_IS_BETTER
from infnet.tune.config import MetricObjective, Objective
from rayrun.config import ConfigError, apply_override, validate
from rayrun.ray.space import Choice, Entry, Point
from rayrun.ray.tune import Search

M, K = "model.num_categorical_proxies", "model.num_sequence_proxies"
N_S, M_TASK = "model.num_shared_tokens", "model.task_proxies.count"
SYMBOLS = {M: "m", K: "k", N_S: "N_s", M_TASK: "m_task"}
"""What the paper calls them."""

SEARCHED = ("model", "train")
"""Sections that a trial may change: all trials share one prepared dataset."""


def plan_of(config: InfnetConfig) -> Search:
    """The search that `tune:` describes, checked as far as can be without data.

    Raises:
        ConfigError: a path that is unknown or decides something else; a value that the
            configuration refuses; an objective that no task has; a grid that is too large.
    """
    tune = config.tune
    space = _proxies(config) if tune.space == "proxies" else dict(tune.space)
    plan = Search(
        space=space,
        objectives={o.name: direction(o) for o in tune.objectives},
        searcher=tune.searcher,
        scheduler=tune.scheduler,
        trials=tune.trials,
        max_seconds=tune.max_seconds,
        max_concurrent=tune.max_concurrent or 0,
        workers=tune.workers,
    )
    for objective in tune.objectives:
        _check_objective(config, objective)
    for path, entry in space.items():
        _check_path(config, path)
        for value in entry.extremes():
            with_values(config, {path: value})
    try:
        known = plan.points()
    except ConfigError as error:
        raise ConfigError(f"tune: {error}") from None
    for point in known or []:
        with_values(config, point)
    return plan


def direction(objective: Objective) -> Literal["max", "min"]:
    """`max` or `min`."""
    if isinstance(objective, MetricObjective) and objective.metric not in LOWER_IS_BETTER:
        return "max"
    return "min"


def with_values(config: InfnetConfig, point: Point) -> InfnetConfig:
    """The configuration with the values of a point.

    Raises:
        ConfigError: it refuses them.
    """
    raw = config.to_dict()
    for override in sets(point):
        raw = apply_override(raw, override)
    return validate(InfnetConfig, raw, where=f"the configuration with {', '.join(sets(point))}")


def sets(point: Point) -> list[str]:
    """A point as `--set` takes it: `a.b=v`."""
    return [f"{path}={json.dumps(value)}" for path, value in point.items()]


def symbol(path: str) -> str:
    """What a path is called in a plot."""
    return SYMBOLS.get(path, path)


def _proxies(config: InfnetConfig) -> dict[str, Entry]:
    """The counts of proxies that there are."""
    model = config.model
    if not isinstance(model, INFNetConfig):
        raise ConfigError(
            f"tune.space: proxies needs model.type infnet, found {model.type}; name the paths to "
            "search over"
        )
    few = Choice(values=(1, 2, 4))
    space: dict[str, Entry] = {M: Choice(values=(1, 2, 4, 8))}
    if any(isinstance(feature, SequenceFeature) for feature in config.features.values()):
        space[K] = few
    space[N_S] = few
    if isinstance(model.task_proxies, PooledTaskProxies):
        space[M_TASK] = few
    return space


def _check_path(config: InfnetConfig, path: str) -> None:
    section = path.partition(".")[0]
    if section not in SEARCHED or "." not in path:
        known = type(config).model_fields
        if section not in known:
            near = difflib.get_close_matches(section, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"tune.space: {path} is no key of the configuration{hint}")
        raise ConfigError(
            f"tune.space must name paths below {' or '.join(SEARCHED)}, found {path}; all trials "
            "share one prepared dataset and one place, so try other values of it in runs of their "
            "own"
        )
    if path == "train.seed":
        raise ConfigError("tune.space: train.seed is drawn by tune.seeds; set that instead")
    if path.startswith("train.strategy") and config.tune.workers == 1:
        raise ConfigError(
            f"tune.space: {path} changes nothing in trials of one worker; set tune.workers to 2 or "
            "more, or leave it out"
        )
    has_events = any(isinstance(f, SequenceFeature) for f in config.features.values())
    if path == K and not has_events:
        raise ConfigError(
            f"tune.space: {path} changes nothing without a feature of type sequence; leave it out"
        )


def _check_objective(config: InfnetConfig, objective: Objective) -> None:
    if not isinstance(objective, MetricObjective):
        return
    tasks: Mapping[str, object] = config.tasks
    if objective.task and objective.task not in tasks:
        near = difflib.get_close_matches(objective.task, tasks, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"tune.objectives: task must be one of {', '.join(tasks)}, found "
            f"{objective.task!r}{hint}"
        )
    of = [config.tasks[objective.task]] if objective.task else [*config.tasks.values()]
    known = sorted({"loss", *(metric for task in of for metric in task.metrics)})
    if objective.metric not in known:
        raise ConfigError(
            f"tune.objectives: metric must be one of {', '.join(known)}, found {objective.metric!r}"
        )
