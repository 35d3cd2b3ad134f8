"""Serve bundle: a trained model and all it needs to answer requests, without torch.

manifest.json       kind `infnet.bundle`: digests of the files below
model.onnx          the network (see `onnx_graph`)
tables.safetensors  embedding tables, which model.onnx names by offset
schema.json         what the model reads and predicts
encoder/            from raw values to ids and numbers
sample.json         a request of the log and the answer to it
config.yaml  result.json  report.html       how it was made; not part of its digest
"""

import importlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from infnet.features.arrays import Arrays, to_arrays
from infnet.features.encoder import Encoder
from infnet.features.request import encode_request
from infnet.schema import Schema
from infnet.serve.mapped import MappedTables
from infnet.tasks import BaseTask, RegressionTask
from infnet.tasks.regression import KNEE
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json

KIND = "infnet.bundle"
FORMAT_VERSION = 1

GRAPH = "model.onnx"
TABLES = "tables.safetensors"
SCHEMA = "schema.json"
ENCODER = "encoder"
SAMPLE = "sample.json"
NOT_DIGESTED = (manifest.CONFIG_FILE, "result.json", "report.html")
"""They hold places, dates and durations: the same model has the same digest wherever it is made."""

TOLERANCE = 1e-5
"""Largest difference between two predictions that count as equal (see `difference`)."""

ROWS_AT_ONCE = 128
"""Rows in one call of the graph. It costs by the row; what lies between its operators should fit
the processor's cache (128 rows of 100 tokens of width 64: 3 MB) and not grow with the request."""


class Bundle:
    """An open bundle: verified, in memory, ready to score. Not picklable; open it where it serves.

    The tables stay on disk and are mapped: replicas on one machine share their pages.
    """

    schema: Schema
    encoder: Encoder
    config: Json
    """The resolved configuration of the training run, as plain data."""
    sample: Json
    """`{"request": {"user", "context", "histories", "candidates"}, "answer": [{task: value}]}`."""
    digest: str
    """`sha256:…` of the content: the version of the model."""
    shares_histories: bool
    """Whether rows with the same histories need them only once."""

    def __init__(
        self, uri: str, *, threads: int = 1, map_from: int | None = None, resident: int = 0
    ) -> None:
        """See `open`."""
        self.uri = uri
        # A remote bundle's copy lives as long as the bundle.
        self._scratch = TemporaryDirectory(prefix="bundle-")
        folder = Path(self._scratch.name)
        found = manifest.read(uri, kind=KIND, format_version=FORMAT_VERSION)
        local = storage.fetch(uri, folder)
        manifest.verify(str(local))
        self.digest = found.content_digest
        self.config = found.config
        self.schema = Schema.read(local / SCHEMA)
        self.encoder = Encoder.read(local / ENCODER)
        if self.encoder.digest != self.schema.encoder_digest:
            raise ConfigError(
                f"{uri}/{ENCODER} has digest {self.encoder.digest}, {uri}/{SCHEMA} belongs to "
                f"{self.schema.encoder_digest}: they are of two models; export again"
            )
        self.sample = json.loads((local / SAMPLE).read_bytes())
        self._mapped: MappedTables | None = None
        if map_from is not None and (local / TABLES).stat().st_size >= map_from:
            self._mapped = MappedTables(
                local / GRAPH, self.schema, at_least=map_from, resident=resident
            )
        self._session = _session(local / GRAPH, uri, threads, self._mapped)
        self._inputs = [value.name for value in self._session.get_inputs()]
        # the name of the first axis; bundles of earlier versions have `rows` everywhere
        axes = {value.name: value.shape[0] for value in self._session.get_inputs()}
        lengths = [f"{slot.name}.lengths" for slot in self.schema.sequences]
        self.shares_histories = all(axes.get(name) != axes.get("dense") for name in lengths)

    @classmethod
    def open(
        cls, uri: str, *, threads: int = 1, map_from: int | None = None, resident: int = 0
    ) -> "Bundle":
        """Fetch, verify and load the bundle at `uri`.

        Args:
            uri: output directory of `infnet export`, a path or `s3://` URI.
            threads: that one call of the model may use; 0: as many as there are cores.
            map_from: tables of this many bytes or more are looked up beside the graph
                (`infnet.serve.mapped`); None: the graph looks up all of them.
            resident: bytes of those tables that stay in the process.

        Raises:
            ConfigError: no bundle there, a newer format, a file that is missing or damaged, or
                parts of two models.
        """
        return cls(uri, threads=threads, map_from=map_from, resident=resident)

    def score(self, rows: pa.Table | Arrays) -> dict[str, np.ndarray]:
        """Predictions float32 [B] by task, for encoded rows: what a user sees.

        Args:
            rows: columns of a shard (`encode_request`), or the arrays made of them. One history
                that stands for all rows is read once, where the model `shares_histories`.

        Raises:
            ConfigError: the rows were encoded for another schema.
        """
        arrays = rows if isinstance(rows, Arrays) else to_arrays(rows, self.schema)
        tasks = list(self.schema.tasks)
        if not len(arrays):
            return {task: np.zeros(0, dtype=np.float32) for task in tasks}
        if not (self.shares_histories and arrays.one_history):
            arrays = arrays.per_row()
        values = feeds(arrays)
        found: list[list[np.ndarray]] = []
        for start in range(0, len(arrays), ROWS_AT_ONCE):
            rows_of = slice(start, start + ROWS_AT_ONCE)
            some = {n: v if len(v) == 1 else v[rows_of] for n, v in values.items()}
            some = self._mapped.feed(some) if self._mapped else some
            found.append(self._session.run(None, {name: some[name] for name in self._inputs}))
        return {
            task: np.concatenate(parts)
            for task, parts in zip(tasks, zip(*found, strict=True), strict=True)
        }

    def check_sample(self) -> None:
        """Answer the bundle's own sample.

        Raises:
            ConfigError: the answer is not the one that was stored, to 1e-5.
        """
        found = self.score(encode_request(self.encoder, **self.sample["request"]))
        for name, task in self.schema.tasks.items():
            answer = np.array([row[name] for row in self.sample["answer"]], dtype=np.float64)
            apart = difference(found[name], answer, task)
            if apart.max(initial=0.0) > TOLERANCE:
                at = int(apart.argmax())
                raise ConfigError(
                    f"{self.uri} does not reproduce its own sample: {name} of candidates[{at}] "
                    f"must be {answer[at]} to {TOLERANCE:g}, found {found[name][at]}; the bundle "
                    "or this installation is broken: export again, or compare the versions in its "
                    "manifest"
                )


def feeds(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays by the names of the graph's inputs."""
    values: dict[str, np.ndarray] = {"ids": arrays.ids, "dense": arrays.dense}
    for name, sequence in arrays.sequences.items():
        values[f"{name}.ids"] = sequence.ids
        values[f"{name}.ages"] = sequence.ages
        values[f"{name}.lengths"] = sequence.lengths
    return values


def difference(found: np.ndarray, expected: np.ndarray, task: BaseTask | None = None) -> np.ndarray:
    """|found − expected| / max(1, |expected|) of each prediction.

    Absolute for probabilities, relative for amounts, which float32 holds to seven digits. The
    amounts of a task whose target is smoothed are compared smoothed: above 100 the amount is the
    exponential of what the network says, and one digit lost there would count hundredfold.
    Infinite where either is not finite.
    """
    if found.shape != expected.shape:
        return np.full(max(len(found), len(expected)), np.inf)
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if isinstance(task, RegressionTask) and task.target == "smoothed":
        found, expected = _smooth(found), _smooth(expected)
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return np.where(np.isfinite(apart), apart, np.inf)


def _smooth(amount: np.ndarray) -> np.ndarray:
    return np.where(amount > KNEE, KNEE + np.log(np.maximum(amount, KNEE) - KNEE + 1), amount)


def _session(path: Path, uri: str, threads: int, mapped: MappedTables | None = None) -> Any:
    # what it is used for is told to nobody: ONNX Runtime asks this when it is imported
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    graph: Path | bytes = path
    if mapped:
        graph = mapped.graph
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has one exception class per status code
        raise ConfigError(
            f"{uri}/{GRAPH} cannot be loaded ({str(error).splitlines()[0]}); export again with "
            f"this version, onnxruntime is {ort.__version__}"
        ) from error
