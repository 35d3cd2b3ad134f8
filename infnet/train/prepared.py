"""The prepared dataset of a run: one that is given, or made once by the run itself."""

import tempfile
from pathlib import Path

from infnet import keys, sections
from infnet.config import InfnetConfig
from infnet.data.shards import FORMAT_VERSION, KIND
from infnet.schema import Schema
from rayrun import manifest, storage
from rayrun.config import ConfigError, digest_of

SCHEMA = "schema.json"
FOLDER = "prepared"
"""In an output: datasets that its verb prepared, by the digest of what they are made from."""


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


def begun(out: str, *, kind: str, format_version: int, named: str) -> manifest.Manifest | None:
    """The manifest of the output that stands at `out`, complete or not; None where none does.

    Raises:
        ConfigError: files that are no part of such an output, which the message calls `named`,
            stand there; or it is of another kind or a newer format.
    """
    if storage.exists(storage.join(out, manifest.FILE)):
        return manifest.read(out, kind=kind, format_version=format_version)
    found = storage.names(out) if storage.exists(out) else []
    if strangers := [name for name in found if not name.startswith(f"{FOLDER}/")]:
        raise ConfigError(
            f"{out} holds {len(strangers)} files (such as {strangers[0]}) and is no {named} (no "
            f"{manifest.FILE}); choose another --out or empty it"
        )
    return None


def check_same(earlier: manifest.Manifest, data: str, out: str, *, named: str) -> None:
    """What stands at `out` goes on with the data it began with.

    Raises:
        ConfigError: `data` is the digest of another dataset.
    """
    if (before := earlier.inputs.get("data")) != data:
        raise ConfigError(
            f"{out} holds a {named} on the data with digest {before}, inputs.data now has {data}; "
            "choose another --out"
        )


def place_for(config: InfnetConfig, out: str) -> str:
    """Where the dataset of the log is, or will be, in `out`: named by the digest of all it is made
    from.

    Raises:
        ConfigError: the log cannot be read or split.
    """
    from infnet.data import empty_split
    from infnet.data.prepare import open_reader

    empty_split.refuse_early(open_reader(config))  # the log is checked before Ray starts
    made_from = digest_of([config.digest(sections.PREPARE), keys.raw_log(config)])
    return storage.join(out, FOLDER, made_from.removeprefix("sha256:")[:16])


def make_once(config: InfnetConfig, place: str) -> None:
    """Prepare the log into `place`, unless that is done."""
    if not storage.exists(storage.join(place, manifest.FILE)):
        from infnet.data.prepare import prepare

        prepare(config, place)
