"""What the live model says about the rows of an evaluation, scored by its own bundle.

Shapes: N rows of the evaluation, T tasks that both models have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32
from numpy import ndarray
from pydantic import TypeAdapter

from infnet.config import InfnetConfig, Split
from infnet.data.shards import FORMAT_VERSION as DATASET_VERSION
from infnet.data.shards import KIND as DATASET_KIND
from infnet.data.shards import SPLITS, open_shards
from infnet.data.split import Splitter
from infnet.evaluate.predictions import Rows
from infnet.evaluate.raw import KEY, RawReader
from infnet.features.hashing import row_keys
from infnet.serve.bundle import Bundle
from rayrun import manifest, storage
from rayrun.config import ConfigError
from rayrun.data.source import open_source
from rayrun.progress import progress

TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class LiveScores:
    """Predictions of the live model for the rows of an evaluation."""

    prediction: Float32[ndarray, "N T"]
    """By row of the evaluation; 0 where `scored` is False."""
    scored: Bool[ndarray, " N"]
    """False: the log has no such row, or the live encoder calls it bad."""
    seen: int | None
    """Rows that the live model's own split puts into its training data; None: not to be told."""


class _Piece(NamedTuple):
    encoded: pa.Table
    user: ndarray
    """As the evaluation names them."""
    seen: int
    """Rows of the piece that the live model was trained on."""


def score_live(
    config: InfnetConfig, bundle: Bundle, rows: Rows, tasks: Sequence[str]
) -> LiveScores:
    """Score the rows of an evaluation with the live bundle; only predictions are kept.

    Prepared shards of `inputs.data` are used if the live encoder made them. Else the rows are read
    from the raw log and encoded, each on its own, as the live encoder learnt it.

    Args:
        config: `data.source` is the log that the evaluated dataset was prepared from.
        bundle: the live one.
        rows: of the evaluation, ascending by `row_id`.
        tasks: tasks of the bundle, in the order of the columns wanted.

    Raises:
        ConfigError: the log lacks a column of the live model, or its rows are of other users than
            those of the evaluation.
    """
    found = np.zeros((len(rows), len(tasks)), np.float32)
    scored = np.zeros(len(rows), bool)
    seen: int | None = 0
    if dataset := _own_dataset(config, bundle):
        pieces = _from_shards(dataset, bundle)
    else:
        reader = _reader(config, bundle, rows)
        splitter = _splitter(bundle, reader)
        seen = None if splitter is None else 0
        pieces = _from_log(reader, splitter)
    with progress(len(rows), "scoring with the live model", unit="rows") as bar:
        for piece in pieces:
            ids = piece.encoded["row_id"].to_numpy()
            at = np.minimum(np.searchsorted(rows.row_id, ids), len(rows) - 1)
            same = rows.row_id[at] == ids
            _check_users(config, piece.user[same], rows.user[at[same]])
            encoded, at = piece.encoded.filter(pa.array(same)), at[same]
            size = config.evaluate.batch_size
            for start in range(0, encoded.num_rows, size):
                answer = bundle.score(encoded.slice(start, size))
                found[at[start : start + size]] = np.stack([answer[t] for t in tasks], axis=1)
            scored[at] = True
            seen = None if seen is None else seen + piece.seen
            bar.advance(encoded.num_rows)
    return LiveScores(found, scored, seen)


def _own_dataset(config: InfnetConfig, bundle: Bundle) -> str:
    """`inputs.data` if the live encoder made it; else nothing."""
    place = config.inputs.data
    if not place or not storage.exists(storage.join(place, manifest.FILE)):
        return ""
    found = manifest.read(place, kind=DATASET_KIND, format_version=DATASET_VERSION)
    return place if found.info["encoder_digest"] == bundle.schema.encoder_digest else ""


def _from_shards(dataset: str, bundle: Bundle) -> Iterator[_Piece]:
    shards = open_shards(dataset, "test", bundle.schema)
    for shard in shards.files:
        for table in shards.read(shard):
            yield _Piece(table, table["user"].to_numpy(), 0)


def _reader(config: InfnetConfig, bundle: Bundle, rows: Rows) -> RawReader:
    log = open_source(config.data.source)
    split = bundle.config["data"]["split"].get("column", "")
    time = bundle.encoder.features.roles.time
    wanted = dict.fromkeys([log.columns.user or "", split, time.column if time else ""])
    keys = tuple(name for name in wanted if name in log.schema.names)
    reader = RawReader(log, bundle.encoder, labels=False, keys=keys, only=rows.row_id)
    try:
        log.check(reader.columns(), "the live model")
    except ConfigError as error:
        raise ConfigError(
            f"the live model at serve.live ({config.serve.live}) cannot score this log: {error}. "
            "Put the column back, or set serve.live to another place"
        ) from error
    return reader


def _from_log(reader: RawReader, splitter: Splitter | None) -> Iterator[_Piece]:
    user = reader.log.columns.user
    for index in range(len(reader.log.fragments())):
        for encoded, _ in reader.read(index):
            kept = {key: encoded[KEY + key] for key in reader.keys}
            raw = pa.table(kept)
            who = row_keys(raw, [user]) if user else encoded["row_id"].to_numpy()
            seen = 0 if splitter is None else int((splitter.codes(raw) == TRAIN).sum())
            yield _Piece(encoded, who, seen)


def _splitter(bundle: Bundle, reader: RawReader) -> Splitter | None:
    """The live model's own split, if it can be applied to this log."""
    roles = bundle.encoder.features.roles
    try:
        split = TypeAdapter(Split).validate_python(bundle.config["data"]["split"])
        found = Splitter(split, roles, reader.log.schema)
    except ValueError:  # also ConfigError: the log has no such column any more
        return None
    return found if found.column in reader.keys else None


def _check_users(config: InfnetConfig, found: ndarray, wanted: ndarray) -> None:
    if other := int((found != wanted).sum()):
        raise ConfigError(
            f"data.source is not the log of inputs.evaluation ({config.inputs.evaluation}): "
            f"{other} of {len(found)} rows with the same row id belong to another user; name the "
            "log that was evaluated, or evaluate again"
        )
