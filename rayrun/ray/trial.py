"""One trial of a search, as its function sees it, and what it leaves behind.

<place>/trials/<id>.json       how far it is: state, reports, result; written at every report
        trials/<id>/…          what its function keeps there until it has finished
        points/<digest>.json   results by point: an equal one is not computed again
"""

import importlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from rayrun import storage
from rayrun.config import ConfigError, Json, digest_of
from rayrun.ray.space import Point

STEP = "report"
"""Metric that counts the reports of a trial: what a scheduler goes by."""
FINISHED = "finished"
"""Metric of the last report of a trial that ran to its end."""

TRIALS = "trials"
POINTS = "points"


@dataclass(frozen=True)
class Trial:
    """A point being tried. Plain data: it may travel to other processes."""

    id: str
    values: Point
    place: str
    """Of the search."""
    objectives: tuple[str, ...]
    """Names of what every report must hold."""

    @property
    def folder(self) -> str:
        """Where the function may keep what a later attempt at this trial goes on from."""
        return storage.join(self.place, TRIALS, self.id)

    def note(self, objectives: Mapping[str, float | None], at: float) -> Json:
        """Write an intermediate report down, in place of an earlier one for the same moment.

        Args:
            objectives: the value of every objective by name.
            at: the moment, in a unit of the function's own that grows: optimizer steps.

        Returns:
            The metrics that the search must be told, see `report`.
        """
        record = read_record(self.place, self.id) or _new(self)
        values = checked(self, objectives)
        earlier = [report for report in record["reports"] if report["at"] < at]
        seconds = time.time() - record["started"]
        record["reports"] = [*earlier, {"at": at, "seconds": seconds, "objectives": values}]
        _write(self, record)
        return {STEP: len(record["reports"]), **values}

    def report(self, objectives: Mapping[str, float | None], at: float) -> None:
        """`note`, and tell the search. It may not return: the trial is stopped then."""
        tune: Any = importlib.import_module("ray.tune")
        tune.report(self.note(objectives, at))

    def forwarding(self) -> Any:
        """A callback for Ray Train inside this trial: what a worker reports from `note` is told to
        the search.
        """
        from ray.tune.integration.ray_train import TuneReportCallback

        class Forwarding(TuneReportCallback):
            def after_report(
                self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
            ) -> None:
                if STEP in metrics[0]:  # else a checkpoint's report, which has no objectives
                    super().after_report(run_context, metrics, None)

        return Forwarding()

    def finish(self, objectives: Mapping[str, float | None], details: Json) -> Json:
        """The result of a trial that ran to its end, kept by its point too."""
        result: Json = {"objectives": checked(self, objectives), "details": details}
        record = read_record(self.place, self.id) or _new(self)
        _write(self, record | {"state": "finished", "result": result, "ended": time.time()})
        text = json.dumps({"values": self.values, "result": result, "trial": self.id})
        storage.write_bytes(_point(self), text.encode())
        return result


def known(trial: Trial) -> Json | None:
    """The result of an equal point that has finished."""
    place = _point(trial)
    return json.loads(storage.read_bytes(place)) if storage.exists(place) else None


def begin(trial: Trial) -> None:
    """Say that this process works on the trial; reports of an earlier attempt stay."""
    before = read_record(trial.place, trial.id)
    reports: list[Json] = [] if before is None else before["reports"]
    _write(trial, _new(trial) | {"reports": reports})


def repeat(trial: Trial, found: Json) -> Json:
    """The result of an equal point, as that of this trial."""
    result = cast(Json, found["result"])
    earlier = read_record(trial.place, trial.id)
    if earlier is None or earlier["state"] != "finished":  # else it is its own, after a restart
        record = _new(trial) | {"repeats": found["trial"]}
        _write(trial, record | {"state": "finished", "result": result, "ended": time.time()})
    return result


def leave_out(trial: Trial) -> None:
    """Say that it was not begun."""
    _write(trial, _new(trial) | {"state": "left out", "ended": time.time()})


def fail(trial: Trial, error: BaseException) -> None:
    """Say why the trial failed."""
    record = read_record(trial.place, trial.id) or _new(trial)
    bad_input = isinstance(error, ConfigError)
    reason = str(error).strip() if bad_input else f"{type(error).__name__}: {error}".strip()
    ended: Json = {"state": "failed", "error": reason, "ended": time.time()}
    _write(trial, record | ended | {"bad_input": bad_input})


def checked(trial: Trial, objectives: Mapping[str, float | None]) -> dict[str, float]:
    """The objectives as finite numbers.

    Raises:
        ConfigError: one is missing, not defined or not finite.
    """
    found: dict[str, float] = {}
    for name in trial.objectives:
        value = objectives.get(name)
        if value is None or not abs(value) < float("inf"):
            raise ConfigError(
                f"the objective {name} must be a finite number in every trial, found {value} with "
                f"{trial.values}; choose an objective that is defined on these rows"
            )
        found[name] = float(value)
    return found


def read_record(place: str, name: str) -> Json | None:
    """What the trial `name` has written so far; None: nothing."""
    uri = storage.join(place, TRIALS, f"{name}.json")
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def _new(trial: Trial) -> Json:
    kept = {name: value for name, value in asdict(trial).items() if name in ("id", "values")}
    more: Json = {"repeats": "", "error": "", "bad_input": False, "result": None, "ended": None}
    now: Json = {"state": "running", "started": time.time(), "pid": os.getpid(), "reports": []}
    return {**kept, **now, **more}


def _write(trial: Trial, record: Json) -> None:
    place = storage.join(trial.place, TRIALS, f"{trial.id}.json")
    storage.write_bytes(place, (json.dumps(record) + "\n").encode())


def _point(trial: Trial) -> str:
    name = digest_of(trial.values).removeprefix("sha256:")[:24]
    return storage.join(trial.place, POINTS, f"{name}.json")
