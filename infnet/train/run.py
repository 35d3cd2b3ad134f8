"""`infnet train`: the model and its rivals, on Ray Train, into one run directory. The only file
here that names Ray.

    out/manifest.json  config.yaml  schema.json  encoder/  sample.json
        checkpoint/            the best weights (infnet.train.checkpoint)
        metrics.jsonl          losses and validation metrics, by step
        rivals/<name>/         the same for each entry of `rivals:`
        result.json  report.html
        ray/                   resumable state; removed when the run is complete
"""

import time
from typing import NamedTuple

from infnet import sections
from infnet.config import InfnetConfig
from infnet.data.sample import FILE as SAMPLE
from infnet.train import loop, prepared
from infnet.train.journal import check_watched
from infnet.train.report import report
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, validate
from rayrun.metrics import Metrics, Result
from rayrun.ray.session import session
from rayrun.ray.train import has_checkpoint
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker

KIND = "infnet.run"
FORMAT_VERSION = 1

STATE = "ray"
"""Ray Train's checkpoints inside a run directory."""
RIVALS = "rivals"


def train(config: InfnetConfig, out: str) -> Result:
    """Train `config.model`, then every entry of `config.rivals`; keep the best checkpoint of each.

    Without `inputs.data` the log is prepared first, into `out/prepared/<digest>`. A second call
    with the same configuration and data continues where the first stopped, exact to the row; once
    complete, it returns the result that stands there.

    Args:
        config: the whole run.
        out: run directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`: validation metrics of the best checkpoint, the rivals' under `baselines`.

    Raises:
        ConfigError: bad configuration or data; `out` holds another run, is being written by another
            process, or is no run directory.
        RuntimeError: workers failed more than `train.max_failures` times; the same call continues.
    """
    started = time.monotonic()
    check_watched(config.tasks, config.train.early_stopping)
    out = storage.absolute(out)
    with storage.claim(out):
        earlier = _earlier(config, out)
        dataset = storage.absolute(config.inputs.data) or prepared.place_for(config, out)
        if config.inputs.data:
            prepared.check(dataset)
        if earlier is not None:
            prepared.check_same(earlier, prepared.digest(dataset), out, named="run")
            if earlier.info["complete"]:
                return Result.read(out)
        try:
            with session(config.compute):
                if not config.inputs.data:
                    prepared.make_once(config, dataset)
                return _train(config, out, dataset, started)
        except ConfigError:
            if earlier is None:
                _clear(out)  # bad input leaves nothing half-written
            raise


def _train(config: InfnetConfig, out: str, dataset: str, started: float) -> Result:
    data = prepared.digest(dataset)
    runs = {"": _Run(config, out, "model")}
    for name, model in config.rivals.items():
        rival = config.model_copy(update={"model": model, "rivals": {}})
        runs[name] = _Run(rival, storage.join(out, RIVALS, name), f"rival-{name}")
    outcomes: dict[str, Json] = {}
    for name, run in runs.items():
        _begin(run, dataset, data)
        outcomes[name] = run_on_ray(
            _on_worker,
            {"config": run.config.to_dict(), "dataset": dataset, "out": run.out},
            compute=config.compute,
            storage_path=storage.join(out, STATE),
            name=run.name,
            max_failures=config.train.max_failures,
            title=f"training {name or config.model.type}",
        )
    found: dict[str, Metrics] = {name: outcome["metrics"] for name, outcome in outcomes.items()}
    result = Result.of(
        "train",
        config,
        started=started,
        split="valid",
        metrics=found.pop(""),
        baselines=found,
        rows=outcomes[""]["rows"],
        peak_memory_bytes=max(int(o["peak_memory_bytes"]) for o in outcomes.values()),
    )
    result.write(out)
    report(config, {name: run.out for name, run in runs.items()}, outcomes).write(
        storage.join(out, "report.html")
    )
    for name in reversed(runs):  # the run itself last: its manifest says that all is there
        _write_manifest(runs[name], data, complete=True, outcome=outcomes[name])
    storage.remove(storage.join(out, STATE))
    return result


class _Run(NamedTuple):
    config: InfnetConfig
    out: str
    name: str
    """Of its state in Ray's storage; fixed, so that a later call continues it."""


def _on_worker(worker: Worker, argument: Json) -> Json:
    config = validate(InfnetConfig, argument["config"], where="the configuration of the run")
    place = loop.Place(dataset=argument["dataset"], out=argument["out"])
    return loop.fit(worker, config, prepared.schema_of(place.dataset), place)


# ---------------------------------------------------------------------------------------------
# What stands in the run directory


def _earlier(config: InfnetConfig, out: str) -> manifest.Manifest | None:
    """The manifest of the run that stands at `out`; None where nothing stands.

    Raises:
        ConfigError: something else stands there.
    """
    found = prepared.begun(out, kind=KIND, format_version=FORMAT_VERSION, named="run directory")
    if found is None:
        return None
    begun = validate(InfnetConfig, found.config, where=f"{out}/{manifest.FILE}")
    decide = sections.TRAIN if config.inputs.data else (*sections.TRAIN, *sections.PREPARE)
    ours, theirs = (one.digest(set(decide)) for one in (config, begun))
    if ours != theirs:
        raise ConfigError(
            f"{out} holds a run with config digest {theirs}, this configuration has "
            f"{ours}; choose another --out, or go back to {out}/{manifest.CONFIG_FILE}"
        )
    return found


def _clear(out: str) -> None:
    """Remove what a run has written, except datasets, which are whole."""
    if not storage.exists(out):
        return
    if has_checkpoint(storage.join(out, STATE)):
        return  # hours of training may stand there, and the bad input may be mended
    found = storage.names(out)
    for top in {name.partition("/")[0] for name in found} - {prepared.FOLDER}:
        storage.remove(storage.join(out, top))
    if not any(name.startswith(f"{prepared.FOLDER}/") for name in found):
        storage.remove(out)


def _begin(run: _Run, dataset: str, data: str) -> None:
    """Copy what belongs to the data, and say what this directory will be."""
    if storage.exists(storage.join(run.out, manifest.FILE)):
        return
    for name in storage.names(dataset):
        if name in (prepared.SCHEMA, SAMPLE) or name.startswith("encoder/"):
            content = storage.read_bytes(storage.join(dataset, name))
            storage.write_bytes(storage.join(run.out, name), content)
    inputs = run.config.inputs.model_copy(update={"data": dataset})
    resolved = run.config.model_copy(update={"inputs": inputs})
    place = storage.join(run.out, manifest.CONFIG_FILE)
    storage.write_bytes(place, resolved.to_yaml().encode())
    _write_manifest(run, data, complete=False, outcome={})


def _write_manifest(run: _Run, data: str, *, complete: bool, outcome: Json) -> None:
    known = {name: value for name, value in outcome.items() if name != "metrics"}
    manifest.write(
        run.out,
        kind=KIND,
        format_version=FORMAT_VERSION,
        config=run.config,
        inputs={"data": data},
        info={"complete": complete, **known},
        exclude=(f"{STATE}/*", f"{prepared.FOLDER}/*", f"{RIVALS}/*"),
    )
