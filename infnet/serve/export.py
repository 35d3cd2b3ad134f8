"""`infnet export`: a trained run → a serve bundle (`infnet.serve.bundle`)."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from infnet.batch import Batch, SequenceBatch
from infnet.config import InfnetConfig
from infnet.data import sample as sample_of_data
from infnet.evaluate.run import checkpoint_of, rivals_of
from infnet.evaluate.scoring import predicted
from infnet.features.arrays import Arrays, SequenceArrays, to_arrays
from infnet.features.batches import to_batch
from infnet.features.encoder import Encoder
from infnet.features.request import encode_request
from infnet.model.recommender import Recommender
from infnet.schema import Schema
from infnet.serve import bundle
from infnet.serve.bundle import Bundle, difference
from infnet.serve.onnx_graph import write_graph
from infnet.tasks import BaseTask
from infnet.train import checkpoint
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json
from rayrun.metrics import Result
from rayrun.report import Report


def export(config: InfnetConfig, out: str, rival: str = "") -> Result:
    """Write the trained model as a bundle to serve; it appears whole or not at all.

    The graph answers the sample request that `infnet prepare` recorded, and its answer is compared
    with that of torch before anything is published.

    Args:
        config: `inputs.checkpoint` is the run directory of `infnet train`.
        out: output directory.
        rival: export this entry of `rivals` instead of the model.

    Returns:
        `result.json`; under `details`: `parity` (largest difference from torch, by task), `bytes`
        of the files, `parameters` (of the network and of the tables), `digest` of the bundle.

    Raises:
        ConfigError: no run, a damaged one, one without a sample, no such rival, predictions that
            are not finite.
        RuntimeError: graph and torch disagree by more than 1e-5.
    """
    started = time.monotonic()
    with storage.claim(out), storage.output(out) as staging:
        run = checkpoint_of(config)
        place = _place(run, rival)
        recommender, schema, trained = checkpoint.load(place)
        request = _copy_parts(place, staging)
        others = request.pop("others", [])
        stored = write_graph(
            recommender.network,
            trained.model,
            schema,
            staging / bundle.TABLES,
            staging / bundle.GRAPH,
        )
        encoder = Encoder.read(staging / bundle.ENCODER)
        rows = encode_request(encoder, **request)
        batch = to_batch(rows, schema)
        expected = _by_torch(recommender, schema, batch)
        answer = [{t: float(v[at]) for t, v in expected.items()} for at in range(rows.num_rows)]
        sample: Json = {"request": request, "answer": answer, "others": others}
        _write_json(staging / bundle.SAMPLE, sample)
        _seal(staging, config, trained, run, place)
        written = Bundle.open(str(staging))
        parity = check_parity(written.score(rows), expected, schema.tasks)
        if written.shares_histories:
            one = _first_history(to_arrays(rows, schema))
            same = _by_torch(recommender, schema, replace(batch, sequences=_sequences(one)))
            shared = check_parity(written.score(one), same, schema.tasks)
            parity = {task: max(apart, shared[task]) for task, apart in parity.items()}
        sizes = {name: (staging / name).stat().st_size for name in (bundle.GRAPH, bundle.TABLES)}
        details: Json = {
            "digest": written.digest,
            "model": rival or trained.model.type,
            "parity": parity,
            "bytes": sizes | {"all": sum(map(storage.size, _files(staging)))},
            "parameters": {
                "network": sum(p.numel() for p in recommender.network.parameters()),
                "tables": sum(math.prod(table.shape) for table in stored.values()),
            },
        }
        result = Result.of("export", config, started=started, rows=len(answer), details=details)
        result.write(str(staging))
        _report(config.name, details, request, answer).write(str(staging / "report.html"))
        return result


def check_parity(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tasks: Mapping[str, BaseTask],
) -> dict[str, float]:
    """The largest difference of the graph from torch, by task.

    Raises:
        RuntimeError: it is above 1e-5.
    """
    apart = {name: difference(found[name], expected[name], task) for name, task in tasks.items()}
    parity = {name: float(values.max()) for name, values in apart.items()}
    task = max(parity, key=lambda name: parity[name])
    if parity[task] > bundle.TOLERANCE:
        at = int(apart[task].argmax())
        raise RuntimeError(
            f"the exported graph must predict as torch does, to {bundle.TOLERANCE:g}: {task} of "
            f"candidates[{at}] is {found[task][at]} in the graph and {expected[task][at]} in "
            "torch; nothing was written"
        )
    return parity


# ---------------------------------------------------------------------------------------------


def _place(run: str, rival: str) -> str:
    if not rival:
        return run
    with TemporaryDirectory(prefix="schema-") as folder:
        schema = Schema.read(storage.fetch(storage.join(run, bundle.SCHEMA), Path(folder)))
    rivals = rivals_of(run, schema)
    if rival not in rivals:
        raise ConfigError(
            f"--rival must name a rival that was trained in {run}: {', '.join(rivals) or '(none)'}"
            f"; found {rival!r}"
        )
    return rivals[rival]


def _copy_parts(place: str, staging: Path) -> Json:
    """Copy what stands in the run directory as it is; returns the sample request."""
    sample = storage.join(place, sample_of_data.FILE)
    if not storage.exists(sample):
        raise ConfigError(
            f"{place} has no {sample_of_data.FILE}, a request that a bundle proves itself by: it "
            "was trained on data that an earlier version prepared; run `infnet prepare` and "
            "`infnet train` again"
        )
    for name in storage.names(place):
        if name == bundle.SCHEMA or name.startswith(f"{bundle.ENCODER}/"):
            _copy(storage.join(place, name), staging / name)
    tables = storage.join(place, checkpoint.CHECKPOINT, checkpoint.TABLES)
    _copy(tables, staging / bundle.TABLES)
    return json.loads(storage.read_bytes(sample))


def _copy(uri: str, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with storage.open(uri) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _first_history(arrays: Arrays) -> Arrays:
    """The rows as if all had the histories of the first."""
    first = {
        name: SequenceArrays(each.ids[:1], each.ages[:1], each.lengths[:1])
        for name, each in arrays.sequences.items()
    }
    return replace(arrays, sequences=first)


def _sequences(arrays: Arrays) -> dict[str, SequenceBatch]:
    return {
        name: SequenceBatch(*(torch.from_numpy(a) for a in (each.ids, each.ages, each.lengths)))
        for name, each in arrays.per_row().sequences.items()
    }


def _by_torch(recommender: Recommender, schema: Schema, batch: Batch) -> dict[str, np.ndarray]:
    found = predicted(recommender, schema, batch)
    for at, task in enumerate(schema.tasks):
        if not np.isfinite(found[:, at]).all():
            raise ConfigError(
                f"the model must predict finite numbers, {task} of the sample is "
                f"{found[:, at].tolist()}: its training has diverged; train again with a smaller "
                "learning rate or train.optimizer.clip_norm"
            )
    return {task: found[:, at].astype(np.float64) for at, task in enumerate(schema.tasks)}


def _seal(staging: Path, config: InfnetConfig, trained: InfnetConfig, run: str, place: str) -> None:
    asked = {name: getattr(config, name) for name in ("serve", "gate", "compute", "inputs")}
    manifest.write(
        str(staging),
        kind=bundle.KIND,
        format_version=bundle.FORMAT_VERSION,
        config=trained.model_copy(update=asked),
        inputs={"checkpoint": manifest.read_raw(run)["config_digest"]},
        info={"checkpoint": manifest.content_of(storage.join(place, checkpoint.CHECKPOINT))},
        exclude=bundle.NOT_DIGESTED,
    )


def _files(directory: Path) -> list[str]:
    return [str(directory / name) for name in storage.names(str(directory))]


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _report(name: str, details: Json, request: Json, answer: list[Json]) -> Report:
    report = Report(f"Serve bundle of {name}", f"model {details['model']}, {details['digest']}")
    report.heading("Parity")
    report.text(
        "Largest difference between the exported graph and torch on the sample request, absolute "
        f"below 1 and relative above. More than {bundle.TOLERANCE:g} is not published."
    )
    report.table(["task", "difference"], [[t, v] for t, v in details["parity"].items()])
    report.heading("Size")
    parameters, sizes = details["parameters"], details["bytes"]
    report.table(
        ["part", "parameters", "bytes"],
        [
            ["network", parameters["network"], sizes[bundle.GRAPH]],
            ["embedding tables", parameters["tables"], sizes[bundle.TABLES]],
            ["whole bundle", sum(parameters.values()), sizes["all"]],
        ],
    )
    report.heading("Sample")
    events = ", ".join(f"{len(e)} of {b}" for b, e in request["histories"].items())
    report.text(
        f"A request made of rows of the log, with {len(request['candidates'])} candidates; events: "
        f"{events or 'none'}. The server answers it before it serves."
    )
    report.table(
        ["candidate", *answer[0]],
        [[f"candidates[{at}]", *row.values()] for at, row in enumerate(answer)],
    )
    report.details("Request", json.dumps(request, indent=1, ensure_ascii=False))
    return report
