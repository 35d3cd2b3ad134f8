"""Ollama's store on disk: `manifests/HOST/NAMESPACE/MODEL/TAG` name the blobs of a model.

    {"schemaVersion": 2, "layers": [{"mediaType": "application/vnd.ollama.image.model",
                                     "digest": "sha256:…", "size": …}, …]}

A blob lies in `blobs/sha256-…`: its digest with a dash. Its size and its SHA-256 are verified
before it is used, once in a process for as long as the file does not change.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_select.sources.gguf_checkpoint import GgufCheckpoint
from layer_select.sources.reading import WORTH_SHOWING
from rayrun.config import ConfigError, Json
from rayrun.progress import progress

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
MEDIA = "application/vnd.ollama.image."
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_CHUNK = 1 << 22
_verified: set[tuple[str, int, int, str]] = set()
"""Blobs found whole in this process: path, size, time of change, digest."""


@dataclass(frozen=True)
class Name:
    """A model's full name; also where its manifest lies."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def path(self) -> Path:
        """Below `manifests`."""
        return Path(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        """The shortest form that Ollama understands."""
        shown = f"{self.model}:{self.tag}"
        if (self.host, self.namespace) == (HOST, NAMESPACE):
            return shown
        return (
            f"{self.namespace}/{shown}"
            if self.host == HOST
            else f"{self.host}/{self.namespace}/{shown}"
        )


def parse_name(text: str) -> Name:
    """`[[host[:port]/]namespace/]model[:tag]`, with Ollama's defaults for what is left out.

    Raises:
        ConfigError: not of that form.
    """
    body = text.removeprefix("https://").removeprefix("http://")
    path, _, last = body.rpartition("/")
    model, _, tag = last.partition(":")
    *hosts, namespace = path.split("/") if path else [NAMESPACE]
    host = hosts[0] if hosts else HOST
    name = Name(host, namespace, model, tag if ":" in last else TAG)
    parts = (host.replace(":", ""), namespace, model, name.tag)
    if len(hosts) > 1 or not all(_PART.fullmatch(part) for part in parts):
        raise ConfigError(
            "the name of a model of Ollama's must be [host/][namespace/]model[:tag] in letters, "
            f"digits, '.', '_' and '-' (llama3.2:1b), found {text!r}"
        )
    return name


def default_store() -> Path:
    """$OLLAMA_MODELS, else the folder of a user's own installation."""
    given = os.environ.get("OLLAMA_MODELS")
    return Path(given) if given else Path.home() / ".ollama" / "models"


class OllamaCheckpoint(GgufCheckpoint):
    """A `Checkpoint` of a model in the store; `file` finds its other layers, by the last part of
    their type: `template`, `system`, `params`, `license` (all of them), `messages`.
    """

    def __init__(self, name: str, store: str) -> None:
        """Find, verify and open; see `Ollama.open`."""
        self.store = Path(store) if store else default_store()
        self.name = parse_name(name)
        self.where = f"ollama:{self.name}"
        layers = _layers(_manifest(self.store, self.name), self.where)
        self._layers: dict[str, list[Json]] = {}
        for kind, layer in layers:
            self._layers.setdefault(kind, []).append(layer)
        blob = self._blob("model")
        with blob.open("rb") as f:
            if (magic := f.read(4)) != b"GGUF":
                raise ConfigError(
                    f"{self.where}: the model's blob {blob} must be a GGUF file, it begins with "
                    f"{magic!r}; pull the model again"
                )
        super().__init__(blob, self.where, beside=self._layer)

    def _layer(self, name: str) -> bytes | None:
        if name not in self._layers:
            return None
        return b"\n".join(
            self._blob(name, at).read_bytes() for at in range(len(self._layers[name]))
        )

    def _blob(self, kind: str, at: int = 0) -> Path:
        layer = self._layers[kind][at]
        path = blob_path(self.store, str(layer.get("digest")), self.where)
        verify(path, layer, self.where)
        return path


def open_ollama(name: str, store: str) -> OllamaCheckpoint:
    """Open a model of the store; see `Ollama.open`."""
    return OllamaCheckpoint(name, store)


def blob_path(store: Path, digest: str, where: str) -> Path:
    """Where a blob lies.

    Raises:
        ConfigError: not a SHA-256 digest.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ConfigError(f"{where}: a layer's digest must be sha256:…, found {digest!r}")
    return store / "blobs" / f"sha256-{match[1]}"


def verify(path: Path, layer: Json, where: str) -> None:
    """Whether the blob is the one that the manifest means.

    Raises:
        ConfigError: missing, of another size, or of another content.
    """
    if not path.is_file():
        raise ConfigError(f"{where}: the blob {path} is missing; pull the model again")
    status, digest = path.stat(), str(layer["digest"]).replace("-", ":")
    if status.st_size != layer.get("size"):
        raise ConfigError(
            f"{where}: the blob {path} must have {layer.get('size')} bytes, found "
            f"{status.st_size}; pull the model again"
        )
    known = (str(path), status.st_size, status.st_mtime_ns, digest)
    if known in _verified:
        return
    found = "sha256:" + _sha256(path, status.st_size, where)
    if found != digest:
        raise ConfigError(
            f"{where}: the blob {path} must have the digest {digest}, found {found}: it is "
            "damaged; pull the model again"
        )
    _verified.add(known)


def stored(store: Path) -> list[str]:
    """Names of the models of a store, sorted."""
    root = store / "manifests"
    found = (path.relative_to(root).parts for path in root.glob("*/*/*/*") if path.is_file())
    return sorted(str(Name(*parts)) for parts in found)


_REFUSED = {
    "projector": "it sees images through a projector; a text-only model is needed",
    "adapter": "it is an adapter on another model: merge it first, and create the model again",
    "tensor": "it is stored tensor by tensor, for Ollama's MLX engine; pull a tag with a GGUF file",
}


def _layers(manifest: Json, where: str) -> Iterator[tuple[str, Json]]:
    layers: Any = manifest.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ConfigError(f"{where}: the manifest must list layers, found {layers!r}")
    kinds = [str(layer.get("mediaType", "")).partition(";")[0] for layer in layers]
    short = [kind.removeprefix(MEDIA) for kind in kinds]
    for kind, why in _REFUSED.items():
        if kind in short:
            raise ConfigError(f"{where} cannot be read: {why}")
    if (count := short.count("model")) != 1:
        raise ConfigError(
            f"{where}: the manifest must name one layer of type {MEDIA}model, found {count} among "
            f"{', '.join(kinds) or 'none'}"
        )
    return iter(zip(short, layers, strict=True))


def _manifest(store: Path, name: Name) -> Json:
    path = store / "manifests" / name.path
    if not path.is_file():
        there = stored(store)
        listed = f"it has {', '.join(there)}" if there else "it has no models"
        raise ConfigError(
            f"ollama:{name}: there is no such model in the store {store}: {listed}; pull it, or "
            "name another store (model.store, or OLLAMA_MODELS)"
        )
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"ollama:{name}: the manifest {path} must be JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schemaVersion") != 2:
        raise ConfigError(f"ollama:{name}: the manifest {path} must have schemaVersion 2")
    return found


def _sha256(path: Path, size: int, where: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        if size < WORTH_SHOWING:
            while chunk := f.read(_CHUNK):
                digest.update(chunk)
            return digest.hexdigest()
        with progress(size, f"verifying {where}", "bytes") as bar:
            while chunk := f.read(_CHUNK):
                digest.update(chunk)
                bar.advance(len(chunk))
    return digest.hexdigest()
