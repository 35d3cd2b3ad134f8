"""The encoder as a directory.

    encoder.json                 configs, states, digests of the tables, digest of it all
    raw.parquet                  no rows: the types of the log's columns
    vocabularies/<name>.parquet  values in the order of their ids
    vectors/<feature>.parquet    pretrained vectors by key
    statistics/<feature>.parquet, histories/<feature>.parquet   the frozen look-ups

Its format is that of `FORMAT_VERSION`; a reader refuses a newer one.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infnet.features import Feature
from infnet.features.encoder import FORMAT_VERSION, Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.vocabulary import Vocabulary
from infnet.tasks import Task
from rayrun.config import Config, ConfigError, Json, digest_of, validate
from rayrun.data.columns import Columns


class _Content(Config):
    features: dict[str, Feature]
    tasks: dict[str, Task]
    columns: Columns


def write_encoder(encoder: Encoder, directory: Path) -> None:
    """Write the directory; files that stand there are overwritten."""
    directory.mkdir(parents=True, exist_ok=True)
    if encoder.digest != encoder.content_digest():
        raise ConfigError(
            "this encoder was stripped of its look-ups; write the one that `fit` gave"
        )
    for name, table in encoder.tables().items():
        path = directory / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
    pq.write_table(encoder.features.schema.empty_table(), directory / "raw.parquet")
    text = json.dumps(encoder.describe() | {"digest": encoder.digest}, indent=1, ensure_ascii=False)
    (directory / "encoder.json").write_text(text, encoding="utf-8")


def read_encoder(directory: Path, *, lookups: bool = True) -> Encoder:
    """Read the directory; `lookups=False` leaves the frozen look-ups on disk.

    Raises:
        ConfigError: missing, damaged, changed since it was written, or of a newer format.
    """
    raw = _description(directory / "encoder.json")
    content = validate(
        _Content,
        {key: raw[key] for key in ("features", "tasks", "columns")},
        where=str(directory / "encoder.json"),
    )
    digests = {name: feature.digest() for name, feature in content.features.items()}
    digest = raw.pop("digest", None)
    if digest != digest_of(raw | {"features": digests}):
        raise ConfigError(
            f"{directory / 'encoder.json'} was changed after it was written (its digest is not "
            f"{digest}); run `infnet prepare` again"
        )
    tables: dict[str, dict[str, pa.Table]] = {
        kind: {} for kind in ("vocabularies", "vectors", "statistics", "histories")
    }
    for path, expected in raw["tables"].items():
        kind, name = path.split("/", 1)
        if lookups or kind in ("vocabularies", "vectors"):
            tables[kind][name] = _table(directory / f"{path}.parquet", expected)
    schema = _parquet(directory / "raw.parquet").schema
    features = FeatureSet(content.features, content.tasks, content.columns, schema)
    vocabularies = {n: Vocabulary(t["value"]) for n, t in tables["vocabularies"].items()}
    return Encoder.of(
        features,
        raw["states"],
        vocabularies,
        tables["vectors"],
        statistics=tables["statistics"],
        histories=tables["histories"],
        digest=digest,
    )


def _description(path: Path) -> Json:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no encoder at {path}; run `infnet prepare` first") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); run `infnet prepare` again") from None
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format_version {found!r}, this program reads up to {FORMAT_VERSION}; "
            "upgrade infnet-ray or prepare the data again"
        )
    return raw


def _table(path: Path, expected: str) -> pa.Table:
    from infnet.features.digests import table_digest

    table = _parquet(path)
    if table_digest(table) != expected:
        raise ConfigError(f"{path} is not the table that encoder.json names; prepare again")
    return table


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run `infnet prepare` again") from None
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is damaged ({error}); run `infnet prepare` again") from None
