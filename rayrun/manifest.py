"""Provenance of an artifact directory: `manifest.json` says what it is, from what, and its digests.

The manifest is written last, so a directory that has one is whole.
"""

import fnmatch
import functools
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from rayrun import __version__, storage
from rayrun.config import Config, ConfigError, Json, digest_of, validate

FILE = "manifest.json"
CONFIG_FILE = "config.yaml"
DISTRIBUTION = "infnet-ray"
PACKAGES = ("torch", "ray", "deepspeed", "pyarrow", "numpy", "pydantic", "safetensors")

VOLATILE = (
    "config.yaml",
    "metrics.jsonl",
    "report.html",
    "result.json",
    "*/config.yaml",
    "*/manifest.json",
    "*/metrics.jsonl",
    "*/result.json",
)
"""Glob patterns of files that tell of a run and not of what it made: they hold wall seconds, dates
and places. They are verified like any other, but two equal runs differ in them."""

Migration = Callable[[Json], Json]


class FileEntry(Config):
    """One file of the artifact."""

    bytes: int
    sha256: str


class Manifest(Config):
    """What an artifact directory is, and from what it was made."""

    kind: str
    """`<product>.<thing>`: `infnet.dataset`, `infnet.run`, …"""
    format_version: int
    config: Json
    """The resolved configuration."""
    config_digest: str
    inputs: dict[str, str] = {}
    """Digest of each input, by the name it has under `inputs:` of the configuration."""
    created: str
    """UTC, ISO 8601."""
    git_commit: str = ""
    """Commit of the checkout the program ran from, `+` appended if changed; empty for a wheel."""
    versions: dict[str, str] = {}
    files: dict[str, FileEntry] = {}
    volatile: tuple[str, ...] = ()
    """Names among `files` that are no part of the content digest."""
    info: Json = {}
    """Whatever else the writer wants known: row counts, the best step, …"""

    @property
    def content_digest(self) -> str:
        """`sha256:…` of the kind, the format and the digests of all files that are not volatile.

        The configuration is no content: settings that leave every other file as it is change
        nothing for whoever reads the artifact.
        """
        files = {n: entry.sha256 for n, entry in self.files.items() if n not in self.volatile}
        return digest_of([self.kind, self.format_version, files])


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes: Python, this distribution, and the packages that are installed."""
    found = {"python": platform.python_version(), DISTRIBUTION: __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str:
    """Commit of the checkout this package lies in, with `+` if files were changed; else empty."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout


def write(
    directory: storage.Uri,
    *,
    kind: str,
    format_version: int,
    config: Config | Json,
    inputs: Mapping[str, str] | None = None,
    info: Json | None = None,
    exclude: Sequence[str] = (),
) -> Manifest:
    """Write `manifest.json`, and `config.yaml` if it is not there, once all files stand.

    Args:
        directory: the artifact, as a rule the staging directory of `storage.output`.
        kind: what the artifact is, `<product>.<thing>`.
        format_version: of the layout; readers refuse a newer one.
        config: the resolved configuration.
        inputs: digest of each input by name.
        info: anything else worth knowing, JSON data.
        exclude: glob patterns of relative names that are no part of the artifact (`ray/*`).
    """
    raw = config.to_dict() if isinstance(config, Config) else config
    config_digest = config.digest() if isinstance(config, Config) else digest_of(config)
    config_file = storage.join(directory, CONFIG_FILE)
    if isinstance(config, Config) and not storage.exists(config_file):
        storage.write_bytes(config_file, config.to_yaml().encode())
    files: dict[str, FileEntry] = {}
    for name in storage.names(directory):
        if name == FILE or any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
            continue
        place = storage.join(directory, name)
        files[name] = FileEntry(bytes=storage.size(place), sha256=storage.file_digest(place))
    manifest = Manifest(
        kind=kind,
        format_version=format_version,
        config=raw,
        config_digest=config_digest,
        inputs=dict(inputs or {}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        versions=versions(),
        files=files,
        volatile=tuple(n for n in files if any(fnmatch.fnmatchcase(n, p) for p in VOLATILE)),
        info=info or {},
    )
    place = storage.join(directory, FILE)
    storage.write_bytes(place, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def read(
    uri: storage.Uri,
    *,
    kind: str,
    format_version: int,
    migrations: Mapping[int, Migration] | None = None,
) -> Manifest:
    """The manifest of the artifact at `uri`.

    Args:
        uri: the artifact directory.
        kind: what it must be.
        format_version: the newest this program reads.
        migrations: `{n: f}`, where f turns the raw manifest of format n into that of n + 1.

    Raises:
        ConfigError: no manifest (the writer did not finish), damaged, another kind, a newer format,
            or an older one without a migration.
    """
    raw = read_raw(uri)
    found_kind = raw.get("kind")
    if found_kind != kind:
        raise ConfigError(
            f"{uri} is an artifact of kind {found_kind!r}, {kind!r} is needed; "
            "check the directory given"
        )
    found = raw.get("format_version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise ConfigError(f"{uri}/{FILE}: format_version must be a whole number, found {found!r}")
    if found > format_version:
        made_by = dict(raw.get("versions") or {}).get(DISTRIBUTION, "a newer version")
        raise ConfigError(
            f"{uri} has format_version {found}, written by {DISTRIBUTION} {made_by}; this program "
            f"({__version__}) reads up to {format_version}: install {DISTRIBUTION}>={made_by}"
        )
    while found < format_version:
        migrate = (migrations or {}).get(found)
        if migrate is None:
            raise ConfigError(
                f"{uri} has format_version {found}, which this program ({__version__}) no longer "
                f"reads (it reads {format_version}); make the artifact again"
            )
        found += 1
        raw = migrate(raw) | {"format_version": found}
    return validate(Manifest, raw, where=f"{uri}/{FILE}")


def stands(uri: storage.Uri, *, kind: str, key: str) -> bool:
    """Whether a finished artifact of `kind` is at `uri` whose `info.key` is `key`."""
    if not storage.exists(storage.join(uri, FILE)):
        return False
    raw = read_raw(uri)
    return raw.get("kind") == kind and dict(raw.get("info") or {}).get("key") == key


def read_raw(uri: storage.Uri) -> Json:
    """`manifest.json` as plain data, whatever its kind and format.

    Raises:
        ConfigError: it is missing or is not JSON.
    """
    place = storage.join(uri, FILE)
    if not storage.exists(place):
        what = "is no finished artifact" if storage.exists(uri) else "does not exist"
        raise ConfigError(f"{uri} {what} (there is no {FILE}); check the path, or make it again")
    try:
        raw = json.loads(storage.read_bytes(place))
    except ValueError as error:
        raise ConfigError(f"{place} is damaged ({error}); make the artifact again") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{place} is damaged (no JSON object); make the artifact again")
    return cast(Json, raw)


def inside(uri: storage.Uri) -> dict[str, Manifest]:
    """Manifests of the artifact at `uri` (named ``) and of those inside it that it does not list.

    A run directory, say, has that of each rival under `rivals/<name>`.

    Raises:
        ConfigError: one is missing or damaged.
    """
    read_raw(uri)  # tells best what is not there
    found: dict[str, Manifest] = {}
    listed: set[str] = set()
    places = [
        "",
        *(n.removesuffix(f"/{FILE}") for n in storage.names(uri) if n.endswith(f"/{FILE}")),
    ]
    for name in sorted(places, key=lambda name: (name.count("/"), name)):
        if f"{name}/{FILE}" in listed:
            continue
        place = storage.join(uri, name) if name else str(uri)
        found[name] = validate(Manifest, read_raw(place), where=f"{place}/{FILE}")
        listed |= {f"{name}/{file}".lstrip("/") for file in found[name].files}
    return found


def content_of(uri: storage.Uri) -> str:
    """`sha256:…` of all that the artifact at `uri` holds, artifacts inside it included.

    Raises:
        ConfigError: a manifest is missing or damaged.
    """
    found = {name: manifest.content_digest for name, manifest in inside(uri).items()}
    return found[""] if len(found) == 1 else digest_of(found)


def verify(uri: storage.Uri) -> None:
    """Check every file of the artifact against the manifest: presence, size, SHA-256.

    Raises:
        ConfigError: naming the first bad file and how it differs.
    """
    files: Json = read_raw(uri).get("files") or {}
    for name, entry in files.items():
        check_file(uri, name, FileEntry.model_validate(entry))


def check_file(uri: storage.Uri, name: str, entry: FileEntry) -> None:
    """Check one file of the artifact at `uri` against its entry in the manifest.

    Raises:
        ConfigError: missing, of another size, or of another content.
    """
    place = storage.join(uri, name)
    remedy = "copy or make the artifact again"
    if not storage.exists(place):
        raise ConfigError(f"{place} is missing, the manifest lists it; {remedy}")
    found = storage.size(place)
    if found != entry.bytes:
        word = "truncated" if found < entry.bytes else "damaged"
        raise ConfigError(
            f"{place} is {word}: it has {found} bytes, the manifest says {entry.bytes}; {remedy}"
        )
    if storage.file_digest(place) != entry.sha256:
        raise ConfigError(f"{place} is damaged: its SHA-256 is not the manifest's; {remedy}")
