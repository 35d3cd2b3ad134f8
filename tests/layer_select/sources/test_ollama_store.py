"""Ollama's store: names, blobs, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from layer_select.sources import Ollama
from layer_select.sources.ollama_store import Name, parse_name, stored
from rayrun.config import ConfigError
from tests.layer_select.sources.forms import blob, gguf, manifest, model_of, ollama

SMALL = "registry.ollama.ai/library/small/latest"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf(model_of("llama", layers=1), tmp_path_factory.mktemp("file") / "small.gguf")


@pytest.fixture
def store(file: Path, tmp_path: Path) -> Path:
    return ollama(file, tmp_path / "store")


def open_small(store: Path, name: str = "small") -> Any:
    return Ollama(name=name, store=str(store)).open()


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("llama3.2:1b", ("registry.ollama.ai", "library", "llama3.2", "1b"), "llama3.2:1b"),
        ("small", ("registry.ollama.ai", "library", "small", "latest"), "small:latest"),
        ("me/small:q8_0", ("registry.ollama.ai", "me", "small", "q8_0"), "me/small:q8_0"),
        ("hf.co/me/a-b:Q4_K_M", ("hf.co", "me", "a-b", "Q4_K_M"), "hf.co/me/a-b:Q4_K_M"),
        (
            "localhost:5000/me/x",
            ("localhost:5000", "me", "x", "latest"),
            "localhost:5000/me/x:latest",
        ),
        ("https://host/me/x:1", ("host", "me", "x", "1"), "host/me/x:1"),
    ],
)
def test_names_are_ollamas(text: str, expected: tuple[str, ...], shown: str) -> None:
    assert parse_name(text) == Name(*expected)
    assert str(parse_name(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "a:b:c", "a/b/c/d", "../../etc:passwd", "a/..:b", "x:", "a b"]
)
def test_names_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be \[host/\]\[namespace/\]model\[:tag\]"):
        parse_name(text)


def test_tags_are_models_of_their_own_and_layers_are_files(store: Path, file: Path) -> None:
    other = gguf(model_of("llama", layers=1, seed=1), store / "other.gguf")
    ollama(other, store, "registry.ollama.ai/library/small/v2")
    ollama(other, store, "hf.co/me/small/Q8_0")
    assert stored(store) == ["hf.co/me/small:Q8_0", "small:latest", "small:v2"]
    first, second = open_small(store), open_small(store, "small:v2")
    assert first.digest != second.digest == open_small(store, "hf.co/me/small:Q8_0").digest
    assert first.file("template") == b"{{ .Prompt }}"
    assert json.loads(first.file("params")) == {"stop": ["<|endoftext|>"]}
    assert first.file("license") == b"first licence\nsecond licence"
    assert first.file("item_head.safetensors") is None


def test_an_unknown_name_lists_what_is_there(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"no such model in the store .*: it has small:latest; pull"
    ):
        open_small(store, "large:7b")
    with pytest.raises(ConfigError, match="it has no models"):
        open_small(tmp_path / "empty")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    assert Ollama(name="small").open().where == "ollama:small:latest"
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"in the store {tmp_path}/\.ollama/models"):
        Ollama(name="small").open()


def test_both_spellings_of_a_digest_are_read(store: Path) -> None:
    place = store / "manifests" / SMALL
    place.write_text(place.read_text().replace("sha256:", "sha256-"))
    assert open_small(store).file("template") == b"{{ .Prompt }}"


def test_a_damaged_blob_is_refused_and_a_whole_one_verified_once(store: Path) -> None:
    checkpoint = open_small(store)
    path = checkpoint.header.path
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"must have the digest sha256:\w+, found sha256:\w+"):
        open_small(store)
    # Unchanged size and time of change stand for unchanged content, within this process only.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_small(store)
    path.write_bytes(content[:-1])
    with pytest.raises(
        ConfigError, match=rf"must have {len(content)} bytes, found {len(content) - 1}"
    ):
        open_small(store)
    path.unlink()
    with pytest.raises(ConfigError, match=r"the blob .* is missing; pull the model again"):
        open_small(store)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("projector", "sees images through a projector"),
        ("adapter", "is an adapter on another model: merge it first"),
        ("tensor; name=a; dtype=F16", "stored tensor by tensor, for Ollama's MLX engine"),
        ("model", r"must name one layer of type .*image\.model, found 2"),
    ],
)
def test_other_forms_are_refused(store: Path, file: Path, kind: str, message: str) -> None:
    layers = [blob(store, file.read_bytes(), "model"), blob(store, b"x", kind)]
    manifest(store, SMALL, layers)
    with pytest.raises(ConfigError, match=message):
        open_small(store)


def test_a_wrong_manifest_is_refused(store: Path) -> None:
    place = store / "manifests" / SMALL
    for content, message in (
        ("{", "must be JSON"),
        ('{"schemaVersion": 1}', "must have schemaVersion 2"),
        ('{"schemaVersion": 2, "layers": "x"}', "must list layers, found 'x'"),
        ('{"schemaVersion": 2, "layers": []}', "found 0 among none"),
    ):
        place.write_text(content)
        with pytest.raises(ConfigError, match=message):
            open_small(store)
    manifest(store, SMALL, [{**blob(store, b"GGUF", "model"), "digest": "md5:1"}])
    with pytest.raises(ConfigError, match="a layer's digest must be sha256:…, found 'md5:1'"):
        open_small(store)
    manifest(store, SMALL, [blob(store, b"PK\x03\x04", "model")])
    with pytest.raises(ConfigError, match=r"must be a GGUF file, it begins with b'PK"):
        open_small(store)
