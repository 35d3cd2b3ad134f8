"""`infnet tune`: the values of a configuration that validate best, and whether the data can tell.

out/best.yaml        the whole configuration with the best values: CONFIG of any verb
    best.json        `sets`: the same as --set takes them
    trials.parquet   every trial and seed       result.json  report.html
    manifest.json    config.yaml                of the search
    search/          trials and the state of a search under way; removed when it is complete
    prepared/        the dataset, unless `inputs.data` names one
"""

import json
import time
from statistics import fmean

import torch

from infnet import sections
from infnet.config import InfnetConfig, Inputs
from infnet.model.recommender import Recommender
from infnet.schema import Schema
from infnet.train import prepared
from infnet.train.journal import check_watched
from infnet.tune import table
from infnet.tune.findings import Findings, findings
from infnet.tune.points import plan_of, sets, with_values
from infnet.tune.report import report
from infnet.tune.trial import run_trial
from rayrun import manifest, storage
from rayrun.config import ConfigError, digest_of
from rayrun.metrics import Metrics, Result
from rayrun.ray.session import session
from rayrun.ray.tune import Search, search

KIND = "infnet.search"
FORMAT_VERSION = 1

STATE = "search"
BEST = "best.yaml"
BEST_SETS = "best.json"


def tune(config: InfnetConfig, out: str) -> Result:
    """Try the points of `tune:`, and keep the best.

    Called again after it was stopped, it goes on: finished trials stay, the others start again,
    those of one worker from their last checkpoint. Without `inputs.data` the log is prepared first,
    into `out/prepared/<digest>`; all trials share the dataset.

    Args:
        config: a whole run with a section `tune`.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`: validation metrics of the best point, means over seeds; under `details` the
        counts of trials, every point with its difference to the best, and the verdict.

    Raises:
        ConfigError: bad configuration or data, said before any trial starts; `out` holds something
            else; no trial ran to its end; every trial failed, with bad input.
        RuntimeError: every trial failed, with something else.
    """
    started = time.monotonic()
    check_watched(config.tasks, config.train.early_stopping)
    plan = plan_of(config)
    out = storage.absolute(out)
    with storage.claim(out):
        given = storage.absolute(config.inputs.data)
        dataset = given or prepared.place_for(config, out)
        if given:
            prepared.check(given)
        earlier = _earlier(config, out)
        if earlier is not None and earlier.info["complete"]:
            return Result.read(out)
        with session(config.compute):
            if not given:
                prepared.make_once(config, dataset)
            _check_buildable(config, plan, prepared.schema_of(dataset))
            _begin(config, out, prepared.digest(dataset), earlier)
            outcomes = search(
                run_trial,
                {"config": config.to_dict(), "dataset": dataset},
                plan,
                compute=config.compute,
                place=storage.join(out, STATE),
                title="search",
            )
        found = findings(plan, outcomes)
        return _write(config, found, out, prepared.digest(dataset), started)


def _write(config: InfnetConfig, found: Findings, out: str, data: str, started: float) -> Result:
    best = with_values(config, found.best.values).model_copy(update={"inputs": Inputs()})
    storage.write_bytes(storage.join(out, BEST), best.to_yaml().encode())
    chosen = {
        "sets": sets(found.best.values),
        "values": found.best.values,
        "objectives": found.best.objectives,
        "trial": found.best.id,
    }
    storage.write_bytes(
        storage.join(out, BEST_SETS), (json.dumps(chosen, indent=1) + "\n").encode()
    )
    table.write(found.outcomes, list(found.plan.space), list(found.plan.objectives), out)
    report(config, found).write(storage.join(out, "report.html"))
    seeds = list(found.best.details["seeds"].values())
    peaks = [
        int(each["peak_memory_bytes"])
        for outcome in found.finished
        for each in outcome.details["seeds"].values()
    ]
    result = Result.of(
        "tune",
        config,
        started=started,
        split="valid",
        metrics=_means([each["metrics"] for each in seeds]),
        rows=sum(int(each["steps"]) for each in seeds) * best.train.batch_size,
        peak_memory_bytes=max(peaks),
        details=found.to_json(),
    )
    result.write(out)
    storage.remove(storage.join(out, STATE))
    _manifest(config, out, data, complete=True)
    return result


def _means(each: list[Metrics]) -> Metrics:
    """Means over the seeds; None where one is not defined."""
    found: Metrics = {}
    for task, row in each[0].items():
        found[task] = {}
        for name in row:
            values = [metrics[task][name] for metrics in each]
            defined = [value for value in values if value is not None]
            found[task][name] = fmean(defined) if len(defined) == len(values) else None
    return found


def _check_buildable(config: InfnetConfig, plan: Search, schema: Schema) -> None:
    """Every point that is known, and the extremes of those that are not, make a model."""
    objectives = plan.objectives
    if "latency" in objectives and not any(slot.kind == "statistic" for slot in schema.dense):
        raise ConfigError(
            "tune.objectives: latency is a multiple of the floor's, which needs a feature of type "
            "statistic, found none; add one, or take parameters for the cost"
        )
    known = plan.points()
    if known is None:
        known = [{path: v} for path, entry in plan.space.items() for v in entry.extremes()]
    for point in known:
        with torch.device("meta"):
            Recommender(with_values(config, point).model, schema)


# ---------------------------------------------------------------------------------------------
# What stands in the directory


def identity(config: InfnetConfig) -> str:
    """Digest of what decides the result beside the data."""
    return digest_of([config.digest(sections.TUNE), config.tune.digest()])


def _earlier(config: InfnetConfig, out: str) -> manifest.Manifest | None:
    """The manifest of this search as it stands at `out`; None where nothing stands.

    Raises:
        ConfigError: something else stands there.
    """
    found = prepared.begun(out, kind=KIND, format_version=FORMAT_VERSION, named="search")
    if found is not None and found.info.get("search") != identity(config):
        raise ConfigError(
            f"{out} holds another search ({found.info.get('search')}, this one is "
            f"{identity(config)}); choose another --out, or go back to "
            f"{out}/{manifest.CONFIG_FILE}"
        )
    return found


def _begin(config: InfnetConfig, out: str, data: str, earlier: manifest.Manifest | None) -> None:
    if earlier is not None:
        prepared.check_same(earlier, data, out, named="search")
        return
    storage.write_bytes(storage.join(out, manifest.CONFIG_FILE), config.to_yaml().encode())
    _manifest(config, out, data, complete=False)


def _manifest(config: InfnetConfig, out: str, data: str, *, complete: bool) -> None:
    manifest.write(
        out,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=config,
        inputs={"data": data},
        info={"complete": complete, "search": identity(config)},
        exclude=(f"{STATE}/*", f"{prepared.FOLDER}/*"),
    )
