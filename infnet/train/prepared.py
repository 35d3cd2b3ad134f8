"""The prepared dataset of a run: one that is given, or made once by the run itself."""

import tempfile
from pathlib import Path

from infnet import keys, sections
from infnet.config import InfnetConfig
from infnet.data.shards import FORMAT_VERSION, KIND
from infnet.schema import Schema
from rayrun import manifest, storage
from rayrun.config import digest_of

SCHEMA = "schema.json"


def check(dataset: str) -> None:
    """What is wrong with a dataset is told before Ray starts.

    Raises:
        ConfigError: no dataset stands there, or its schema cannot be read.
    """
    digest(dataset)
    schema_of(dataset)


def digest(dataset: str) -> str:
    """The content digest of a dataset.

    Raises:
        ConfigError: no dataset stands there.
    """
    return manifest.read(dataset, kind=KIND, format_version=FORMAT_VERSION).content_digest


def schema_of(dataset: str) -> Schema:
    """The schema of a dataset.

    Raises:
        ConfigError: it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="schema-") as folder:
        return Schema.read(storage.fetch(storage.join(dataset, SCHEMA), Path(folder)))


def place_for(config: InfnetConfig, folder: str) -> str:
    """Where the dataset of the log is, or will be: named by the digest of all it is made from.

    Raises:
        ConfigError: the log cannot be read or split.
    """
    from infnet.data import empty_split
    from infnet.data.prepare import open_reader

    empty_split.refuse_early(open_reader(config))  # the log is checked before Ray starts
    made_from = digest_of([config.digest(sections.PREPARE), keys.raw_log(config)])
    return storage.join(folder, made_from.removeprefix("sha256:")[:16])


def make_once(config: InfnetConfig, place: str) -> None:
    """Prepare the log into `place`, unless that is done."""
    if not storage.exists(storage.join(place, manifest.FILE)):
        from infnet.data.prepare import prepare

        prepare(config, place)
