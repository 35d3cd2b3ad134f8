"""Search with Ray Tune: points of a space, a function that tries one, objectives, a scheduler.

The function sees a `Trial` and its argument, reports while it works, and returns its objectives; it
knows no Ray. Trials of one worker run in processes that are used again for the next trial: only the
first in each pays for imports. What must survive lies under the place of the search, and a search
that was killed goes on: finished trials stay, the others start again.
"""

import contextlib
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.progress import progress
from rayrun.ray import trial as trials
from rayrun.ray.compute import Compute
from rayrun.ray.session import session
from rayrun.ray.space import (
    AshaScheduler,
    Choice,
    Entry,
    FloatRange,
    IntRange,
    NoScheduler,
    OptunaSearcher,
    Point,
    RandomSearcher,
    Scheduler,
    SearchBy,
    points,
    text_of,
)
from rayrun.ray.trial import FINISHED, STEP, Trial

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials keep their own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, as everywhere
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # seconds of scheduling that a killed search repeats
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # prints nothing, as is asked for
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a configuration stay what they are
}

STATE = "ray"
"""Ray Tune's own state, inside the place of a search."""
LOOK_EVERY_S = 1.0

TrialFunction = Callable[[Trial, Json], tuple[Mapping[str, float | None], Json]]
"""`function(trial, argument) → (objectives, details)`: details are kept with the result."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to try, and for how long."""

    space: Mapping[str, Entry]
    """By dotted path."""
    objectives: Mapping[str, Literal["max", "min"]]
    """Direction by name; the first is what a scheduler goes by."""
    searcher: SearchBy = field(default_factory=RandomSearcher)
    scheduler: Scheduler = field(default_factory=NoScheduler)
    trials: int = 12
    """Points at most."""
    max_seconds: float = 0.0
    """No trial starts after so long, those under way go on; 0: no limit."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as there are CPUs (and GPUs) for."""
    workers: int = 1
    """Worker processes that one trial starts itself, beside its own; 1: it starts none."""

    def points(self) -> list[Point] | None:
        """All points, where they are known before the search: not with Optuna.

        Raises:
            ConfigError: the space is empty; a grid that cannot be listed or has too many points.
        """
        if not self.space:
            raise ConfigError("the space of a search must have at least one path, found none")
        return points(self.space, self.searcher, self.trials)


@dataclass(frozen=True)
class Outcome:
    """A trial that is over."""

    id: str
    values: Point
    state: Literal["finished", "stopped", "failed"]
    """`stopped`: by the scheduler before its end, or not begun when the time was over."""
    objectives: dict[str, float]
    """Of its end, or of its last report; empty where there is none."""
    reports: list[Json] = field(default_factory=list[Json])
    """`at`, `seconds` since its start, `objectives`."""
    details: Json = field(default_factory=dict[str, Any])
    """What the function returned; empty if it did not end."""
    error: str = ""
    bad_input: bool = False
    """The error is one of the input, not of the program."""
    repeats: str = ""
    """Id of the trial with an equal point whose result it took over."""
    seconds: float = 0.0
    pid: int = 0
    """Of the process that worked on it."""


def search(
    function: TrialFunction,
    argument: Json,
    plan: Search,
    *,
    compute: Compute,
    place: str,
    title: str = "search",
) -> list[Outcome]:
    """Try the points of `plan`, and say what came of each.

    A trial that fails or is killed counts as failed; the others go on. Started again with the same
    plan and place, a search that was killed keeps its finished trials and gives the failed ones
    another attempt.

    Args:
        function: importable on the workers.
        argument: JSON data for every trial.
        plan: what to try.
        compute: each trial takes `cpus_per_worker` and `gpus_per_worker` for each of its workers.
        place: directory or URI of the search that all workers reach.
        title: for the progress display.

    Raises:
        ConfigError: the plan is not possible; every trial failed, with bad input.
        RuntimeError: every trial failed, with something else.
    """
    known = plan.points()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with session(compute):
        tuner = _tuner(function, argument, plan, known, compute=compute, place=place)
        with _shown(place, len(known) if known is not None else plan.trials, title):
            results = tuner.fit()
    found = [_outcome(result, place, plan) for result in results]
    if found and all(outcome.state == "failed" for outcome in found):
        reason = f"all {len(found)} trials failed; the first: {found[0].error}"
        if found[0].bad_input:
            raise ConfigError(reason)
        raise RuntimeError(reason)
    return found


# ---------------------------------------------------------------------------------------------


def _tuner(
    function: TrialFunction,
    argument: Json,
    plan: Search,
    known: list[Point] | None,
    *,
    compute: Compute,
    place: str,
) -> Any:
    tune: Any = importlib.import_module("ray.tune")

    texts = [path for path, entry in plan.space.items() if isinstance(entry, Choice)]
    objectives = tuple(plan.objectives)
    until = time.time() + plan.max_seconds if plan.max_seconds else float("inf")

    def trainable(config: dict[str, Any]) -> None:
        values = config.get("point") or _decoded(config, texts)
        identity = str(tune.get_context().get_trial_id())
        trial = Trial(identity, values, place, objectives)
        if time.time() > until:
            _leave_out(trial)
        else:
            _on_trial(trial, function, argument)

    # Workers of a trial take CPUs of their own; its own process then only waits for them.
    alone = plan.workers == 1
    own = {"cpu": compute.cpus_per_worker, "gpu": compute.gpus_per_worker}
    nearly_none = {"cpu": 0, "memory": 1}  # Tune takes no empty bundle: a byte
    trainable = tune.with_resources(trainable, own if alone else nearly_none)
    filesystem, root = storage.arrow_filesystem(place)
    state = storage.join(root, STATE)
    if _begun(place) and tune.Tuner.can_restore(state, storage_filesystem=filesystem):
        return tune.Tuner.restore(
            state,
            trainable,
            resume_unfinished=True,
            restart_errored=True,
            storage_filesystem=filesystem,
        )
    storage.remove(storage.join(place, STATE))
    return tune.Tuner(
        trainable,
        param_space={} if known is None else {"point": tune.grid_search(known)},
        tune_config=tune.TuneConfig(
            search_alg=_optuna(plan) if known is None else None,
            scheduler=_scheduler(plan),
            num_samples=plan.trials if known is None else 1,
            max_concurrent_trials=_concurrent(plan, compute),
            reuse_actors=alone,
            trial_dirname_creator=_directory,
        ),
        run_config=tune.RunConfig(
            name=STATE, storage_path=root, storage_filesystem=filesystem, verbose=0
        ),
    )


def _directory(trial: Any) -> str:
    return str(trial.trial_id)


def _begun(place: str) -> bool:
    """Whether Ray Tune has written down which trials there are."""
    where = storage.join(place, STATE)
    return storage.exists(where) and any(
        name.startswith("experiment_state") for name in storage.names(where)
    )


def _concurrent(plan: Search, compute: Compute) -> int:
    """Trials at once, so that the workers of each find a place: else all wait for each other."""
    ray: Any = importlib.import_module("ray")
    there: dict[str, float] = ray.cluster_resources()
    wanted = {"CPU": compute.cpus_per_worker, "GPU": compute.gpus_per_worker}
    fit = min(
        int(there.get(kind, 0) // (plan.workers * each)) for kind, each in wanted.items() if each
    )
    if fit < 1:
        raise ConfigError(
            f"one trial takes {plan.workers} workers with {wanted['CPU']:g} CPUs and "
            f"{wanted['GPU']:g} GPUs each, found {there.get('CPU', 0):g} CPUs and "
            f"{there.get('GPU', 0):g} GPUs; lower tune.workers or compute.cpus_per_worker"
        )
    return min(fit, plan.max_concurrent or fit)


def _scheduler(plan: Search) -> Any:
    if isinstance(plan.scheduler, NoScheduler):
        return None
    schedulers: Any = importlib.import_module("ray.tune.schedulers")
    asha: AshaScheduler = plan.scheduler
    name, mode = next(iter(plan.objectives.items()))
    return schedulers.ASHAScheduler(
        time_attr=STEP,
        metric=name,
        mode=mode,
        max_t=1_000_000,  # the function itself knows its end
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
        stop_last_trials=False,
    )


def _optuna(plan: Search) -> Any:
    optuna: Any = importlib.import_module("optuna")
    searchers: Any = importlib.import_module("ray.tune.search.optuna")
    assert isinstance(plan.searcher, OptunaSearcher)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names, modes = list(plan.objectives), list(plan.objectives.values())
    one = len(names) == 1
    sampler = optuna.samplers.TPESampler(
        seed=plan.searcher.seed, n_startup_trials=plan.searcher.startup, constant_liar=True
    )
    return searchers.OptunaSearch(
        {path: _distribution(entry) for path, entry in plan.space.items()},
        metric=names[0] if one else names,
        mode=modes[0] if one else modes,
        sampler=sampler,
    )


def _distribution(entry: Choice | IntRange | FloatRange) -> Any:
    distributions: Any = importlib.import_module("optuna.distributions")
    if isinstance(entry, Choice):  # as text: Optuna takes no lists
        return distributions.CategoricalDistribution([text_of(value) for value in entry.values])
    if isinstance(entry, IntRange):
        return distributions.IntDistribution(entry.low, entry.high, log=entry.log)
    return distributions.FloatDistribution(entry.low, entry.high, log=entry.log)


def _decoded(config: Mapping[str, Any], texts: Sequence[str]) -> Point:
    return {path: json.loads(v) if path in texts else v for path, v in config.items()}


def _on_trial(trial: Trial, function: TrialFunction, argument: Json) -> None:
    """In the process of a trial."""
    tune: Any = importlib.import_module("ray.tune")
    found = trials.known(trial)
    if found is not None:
        result = trials.repeat(trial, found)
    else:
        trials.begin(trial)
        try:
            objectives, details = function(trial, argument)
            result = trial.finish(objectives, details)
        except Exception as error:
            trials.fail(trial, error)
            raise
    record = trials.read_record(trial.place, trial.id) or {"reports": []}
    last = len(cast(list[Json], record["reports"])) + 1
    tune.report({STEP: last, FINISHED: 1, **cast(Json, result["objectives"])})


def _leave_out(trial: Trial) -> None:
    """The time is over: the trial ends without a report that anybody goes by."""
    tune: Any = importlib.import_module("ray.tune")
    trials.leave_out(trial)
    tune.report({STEP: 0, **{name: float("nan") for name in trial.objectives}})


def _outcome(result: Any, place: str, plan: Search) -> Outcome:
    name = Path(str(result.path)).name
    record = trials.read_record(place, name)
    if record is None:  # killed before it began
        texts = [path for path, entry in plan.space.items() if isinstance(entry, Choice)]
        given = cast(Json, result.config or {})
        values = cast(Point, given.get("point")) or _decoded(given, texts)
        return Outcome(name, values, "failed", {}, error=_reason(result.error))
    reports = cast(list[Json], record["reports"])
    objectives = cast("dict[str, float]", reports[-1]["objectives"] if reports else {})
    ended = float(record["ended"] or record["started"] + (reports[-1]["seconds"] if reports else 0))
    shared = Outcome(
        name,
        cast(Point, record["values"]),
        "stopped",
        objectives,
        reports,
        repeats=str(record["repeats"]),
        seconds=ended - float(record["started"]),
        pid=int(record["pid"]),
    )
    if record["state"] == "finished":
        found = cast(Json, record["result"])
        kept = {"objectives": found["objectives"], "details": found["details"]}
        return _with(shared, state="finished", **kept)
    if result.error is not None:
        said = str(record["error"]) or _reason(result.error)
        return _with(shared, state="failed", error=said, bad_input=record["bad_input"])
    return shared


def _with(outcome: Outcome, **changes: Any) -> Outcome:
    return Outcome(**{**vars(outcome), **changes})


def _reason(error: BaseException | None) -> str:
    said = str(error).strip().splitlines() if error is not None else []
    return said[-1] if said else "it ended without a word; its process was killed"


@contextlib.contextmanager
def _shown(place: str, total: int, title: str) -> Generator[None]:
    """Show how many trials are over while the block runs."""
    over = threading.Event()

    def follow() -> None:
        ended: set[str] = set()
        with progress(total, title, unit="trials") as bar:
            while True:
                last = over.wait(LOOK_EVERY_S)
                for name in _names(place):
                    with contextlib.suppress(ConfigError, OSError, ValueError):
                        record = {} if name in ended else trials.read_record(place, name) or {}
                        if record.get("state") in ("finished", "failed", "left out"):
                            ended.add(name)
                            bar.advance(1)
                if last:
                    return

    thread = threading.Thread(target=follow, name="trials", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _names(place: str) -> list[str]:
    where = storage.join(place, trials.TRIALS)
    if not storage.exists(where):
        return []
    return [
        n.removesuffix(".json")
        for n in storage.names(where)
        if n.endswith(".json") and "/" not in n
    ]
