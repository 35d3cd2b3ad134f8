"""A store of outputs by content: what a verb would make again is taken as it stands.

    infnet prepare CONFIG --store runs/store     # → runs/store/infnet-prepare/3f9c2a…/

The directory is named by a key: the digest of all that decides the result.

- the verb and its flags;
- the sections of the configuration that the verb reads (`Verb.sections`), without places;
- the content digests of its inputs, and of what else it reads (`Verb.reads`): the bytes of the raw
  log, never its name, size or time;
- the program: the bytes of every source file of the product and of rayrun, the minor version of
  Python, and the versions of the packages that compute (`COMPUTING`).

No path, time, user or host enters, and neither does `compute`: moving the checkout, the data or the
store re-runs nothing. Nor do the processor and the number of threads, which change a result in its
last digits: a store shared between machines holds what the first of them made.

What stands at the key is verified by its manifest, every byte, before it is used. If it is damaged
it is removed and made again; a training that was interrupted goes on.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrun import manifest, storage
from rayrun.config import Config, ConfigError, Json, digest_of
from rayrun.metrics import RESULT_FILE, Result
from rayrun.verb import Verb, resolve

FORMAT_VERSION = 1
"""Of the keys: a change in what they are made from starts a store afresh."""

COMPUTING = (
    "torch",
    "ray",
    "deepspeed",
    "numpy",
    "pyarrow",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
"""Packages whose version decides a result or how it is written."""

TAKE_IT_THEN = "wait until it ends and run again: the same result is then taken from the store"
"""To whoever asks for what another run is making."""

KEY_DIGITS = 16
"""Hexadecimal digits of the key that name a directory."""


@dataclass(frozen=True)
class Key:
    """What decides a result."""

    digest: str
    """`sha256:…`."""
    parts: Json
    """What it is the digest of, each part by its own digest or value, for a person who asks why a
    step ran again."""

    def place(self, store: str, prog: str, verb: str) -> str:
        """The directory of the result in `store`; an absolute path where the store is local."""
        path = storage.local_path(store)
        root = store if path is None else str(path.absolute())
        name = self.digest.removeprefix("sha256:")[:KEY_DIGITS]
        return storage.join(root, f"{prog}-{verb}", name)


@dataclass(frozen=True)
class Kept:
    """A result in the store."""

    uri: str
    key: str
    cached: bool
    """It stood there already."""
    result: Result


def key_of(prog: str, verb: Verb, config: Config, flags: Mapping[str, Any]) -> Key:
    """The key of one call of a verb.

    Raises:
        ConfigError: an input or the raw log is not there or cannot be read.
    """
    places = {flag.name for flag in verb.flags if flag.place}
    parts: Json = {
        "format": FORMAT_VERSION,
        "verb": f"{prog} {verb.name}",
        "flags": {n: value for n, value in flags.items() if n not in places},
        "config": config.digest(verb.sections),
        "inputs": _inputs(verb, config),
        "reads": resolve(verb.reads)(config, **flags) if verb.reads is not None else {},
        "program": program_digest("rayrun", _package_of(verb)),
        "versions": versions(),
    }
    return Key(digest_of(parts), parts)


def run(
    prog: str, verb: Verb, config: Config, flags: Mapping[str, Any], key: Key, store: str
) -> Kept:
    """The result of a verb from the store, or made and kept there.

    Of two runs with the same key at once the second is told that the first is writing; it finds the
    result when it is run again. Results that stand are read by any number.

    Args:
        prog: the program.
        verb: a verb that says `store`.
        config: the whole configuration.
        flags: the values of the verb's own flags.
        key: `key_of` the same call.
        store: where results are kept, a directory or an `s3://` URI.

    Raises:
        ConfigError: bad input; another run is making the same; what was read changed meanwhile.
    """
    uri = key.place(store, prog, verb.name)
    if _state(uri)[0] == "whole":
        return Kept(uri, key.digest, True, Result.read(uri))
    with storage.claim(uri, otherwise=TAKE_IT_THEN):
        state, why = _state(uri)  # whoever held the claim before may have made it
        if state == "whole":
            return Kept(uri, key.digest, True, Result.read(uri))
        if state == "damaged":
            print(f"{verb.name}: {why}", file=sys.stderr)
            print(f"{verb.name}: removed, making it again", file=sys.stderr, flush=True)
            storage.remove(uri)
        _sweep(uri)
        result = resolve(verb.run)(config, uri, **flags)
        _check_unchanged(key, uri, verb.name)
    return Kept(uri, key.digest, False, result)


def look(prog: str, verb: Verb, key: Key, store: str) -> tuple[str, str]:
    """Where the result is, and what `run` would do, in a few words. Changes nothing."""
    uri = key.place(store, prog, verb.name)
    state, why = _state(uri)
    words = {
        "whole": f"use what stands at {uri}",
        "damaged": f"make {uri} again ({why})",
        "unfinished": f"go on with {uri}",
        "absent": f"write to {uri}",
    }
    return uri, words[state]


def versions() -> dict[str, str]:
    """Versions that enter the key, of what is installed."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    known = {**manifest.versions()}
    for package in COMPUTING:
        if package not in known:
            try:
                known[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        found[package] = known[package]
    return found


@functools.cache
def program_digest(*packages: str) -> str:
    """`sha256:…` of the source files of installed packages, wherever they lie."""
    return digest_of({name: _sources_digest(name) for name in sorted(set(packages))})


# ---------------------------------------------------------------------------------------------


def _sources_digest(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    files: list[tuple[str, Path]] = []
    for root in roots:
        files += [(p.relative_to(root).as_posix(), p) for p in root.rglob("*.py")]
    if not roots and spec.origin:
        files.append((Path(spec.origin).name, Path(spec.origin)))
    total = hashlib.sha256()
    for name, path in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest()


def _package_of(verb: Verb) -> str:
    where = verb.run if isinstance(verb.run, str) else str(verb.run.__module__)
    return where.partition(":")[0].partition(".")[0]


def _inputs(verb: Verb, config: Config) -> dict[str, str]:
    inputs: Json = config.to_dict().get("inputs") or {}
    wanted: Iterable[str] = inputs if verb.inputs is None else verb.inputs
    found: dict[str, str] = {}
    for name in sorted(wanted):
        try:
            found |= {name: manifest.content_of(str(inputs[name]))} if inputs[name] else {}
        except ConfigError as error:
            raise ConfigError(f"inputs.{name}: {error}") from error
    return found


def _state(uri: str) -> tuple[str, str]:
    """`absent`, `unfinished`, `damaged` (and how), or `whole`: every byte as the manifest says."""
    if not storage.exists(uri):
        return "absent", ""
    has_manifest = storage.exists(storage.join(uri, manifest.FILE))
    if not has_manifest and not storage.exists(storage.join(uri, RESULT_FILE)):
        return "unfinished", ""  # the verb knows what may stand there, and refuses the rest
    try:
        found = manifest.inside(uri)
        if found[""].info.get("complete") is False:
            return "unfinished", ""
        for name in found:
            manifest.verify(storage.join(uri, name) if name else uri)
        Result.read(uri)
    except ConfigError as error:
        return "damaged", str(error)
    return "whole", ""


def _sweep(uri: str) -> None:
    """Remove what a run that was killed left beside its output; the claim on it is ours."""
    path = storage.local_path(uri)
    if path is None:
        return
    for word in ("staging", "part", "old"):
        for left in path.parent.glob(f".{path.name}.{word}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _check_unchanged(key: Key, uri: str, verb: str) -> None:
    """What the verb says it read must be what is in the key."""
    made_from: Json = manifest.read_raw(uri).get("inputs") or {}
    for name, digest in key.parts["reads"].items():
        if name in made_from and made_from[name] != digest:
            storage.remove(uri)
            raise ConfigError(
                f"{verb}: the {name} changed while it was being read ({digest} before, "
                f"{made_from[name]} after); nothing was kept, run again when it no longer changes"
            )
