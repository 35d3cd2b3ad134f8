"""The layout of a recommender bundle, and what reading one refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from layer_select.export import bundle as layout
from layer_select.export import item_vectors
from layer_select.export.bundle import Bundle, HistoryPrompt
from layer_select.task.config import Prompt
from rayrun import manifest
from rayrun.config import ConfigError

TITLES = ["Go", "Chess", "围棋 入门"]
ANSWER = [
    {"item": "c", "title": "围棋 入门", "score": 2.0},
    {"item": "a", "title": "Go", "score": 1.5},
    {"item": "b", "title": "Chess", "score": 1.5},
]


def written(path: Path, vectors: bytes | None = None, **changes) -> Path:
    """A bundle of three items, whose model is but a folder."""
    (path / layout.MODEL).mkdir(parents=True)
    (path / layout.MODEL / "config.json").write_text("{}")
    layout.write_parts(
        path,
        items=["a", "b", "c"],
        titles=TITLES,
        vectors=item_vectors.written(torch.eye(3)) if vectors is None else vectors,
        prompt=HistoryPrompt(prompt=Prompt(before="Likes: "), max_history=5, max_tokens=40),
        sample={"request": {"history": ["a"], "k": 3}, "answer": ANSWER},
    )
    manifest.write(
        path,
        **{"kind": layout.KIND, "format_version": layout.FORMAT_VERSION, "config": {}, **changes},
    )
    return path


def test_what_is_written_is_read(tmp_path):
    bundle = Bundle.read(str(written(tmp_path / "b", info={"layers": 3})))
    assert (list(bundle.items), list(bundle.titles)) == (["a", "b", "c"], TITLES)
    assert torch.equal(bundle.vectors, torch.eye(3))
    task = bundle.prompt.task()
    assert (task.prompt.before, task.max_history, task.max_tokens) == ("Likes: ", 5, 40)
    assert bundle.digest.startswith("sha256:")
    assert bundle.gguf is None
    assert bundle.info == {"layers": 3}
    assert bundle.numbers() == {"a": 0, "b": 1, "c": 2}
    bundle.check_sample(ANSWER)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (item_vectors.FILE, _cut, r"item_vectors\.safetensors is truncated: it has \d+ bytes"),
        (layout.SAMPLE, _flip, r"sample\.json is damaged: its SHA-256 is not the manifest's"),
        ("model/config.json", Path.unlink, r"model/config\.json is missing, the manifest lists it"),
        (manifest.FILE, Path.unlink, "is no finished artifact"),
    ],
)
def test_a_damaged_bundle_is_told_by_file(tmp_path, name, damage, message):
    place = written(tmp_path / "b")
    damage(place / name)
    with pytest.raises(ConfigError, match=message):
        Bundle.read(str(place))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"has format_version 2, .*reads up to 1: install infnet-ray>="),
        ({"kind": "layer_select.plan"}, r"of kind 'layer_select\.plan', 'layer_select\.bundle' is"),
    ],
)
def test_a_newer_format_and_another_kind_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        Bundle.read(str(written(tmp_path / "b", **changes)))


def test_parts_of_two_catalogues_are_refused(tmp_path):
    place = written(tmp_path / "b", vectors=item_vectors.written(torch.eye(4)))
    with pytest.raises(ConfigError, match=r"a vector for each of the 3 items of .*, found 4"):
        Bundle.read(str(place))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (layout.ITEMS, b"PAR1", r"items\.parquet cannot be read .*export the bundle again"),
        (layout.PROMPT, b"{", r"prompt\.json cannot be read .*export the bundle again"),
        (layout.SAMPLE, b"[]", r"sample\.json must hold a mapping; export the bundle again"),
    ],
)
def test_what_was_never_whole_is_refused(tmp_path, name, content, message):
    place = written(tmp_path / "b")
    (place / name).write_bytes(content)
    (place / manifest.FILE).unlink()
    manifest.write(place, kind=layout.KIND, format_version=1, config={})
    with pytest.raises(ConfigError, match=message):
        Bundle.read(str(place))


def _answer(*pairs: tuple[str, float]) -> list[dict]:
    return [{"item": item, "score": score} for item, score in pairs]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_answer(("c", 2.0)), "3 items are expected, found 1"),
        (
            _answer(("c", 2.0), ("a", 1.4), ("b", 1.4)),
            "place 2 must be item 'a' with 1.500000 to 0.0001, found 'a' with 1.400000",
        ),
        (
            _answer(("a", 2.0), ("c", 1.5), ("b", 1.5)),
            "place 1 must be item 'c' with 2.000000 to 0.0001, found 'a' with 2.000000",
        ),
        (_answer(("c", float("nan")), ("a", 1.5), ("b", 1.5)), "found 'c' with nan"),
    ],
)
def test_another_answer_to_the_sample_is_refused(tmp_path, answer, message):
    bundle = Bundle.read(str(written(tmp_path / "b")))
    with pytest.raises(ConfigError, match="does not reproduce its own sample: .*" + message):
        bundle.check_sample(answer)


def test_rounding_and_the_order_of_equal_scores_are_forgiven(tmp_path):
    bundle = Bundle.read(str(written(tmp_path / "b")))
    bundle.check_sample(_answer(("c", 2.0 + 1e-5), ("b", 1.5), ("a", 1.5 - 1e-5)))


def test_int8_vectors_are_within_half_a_step_and_a_quarter_of_the_size():
    vectors = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 3
    vectors[7] = 0
    content = item_vectors.written(vectors, "int8")
    found = item_vectors.read(content, "v")
    step = vectors.abs().amax(1, keepdim=True) / 127
    assert ((found - vectors).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.equal(found[7], vectors[7])
    assert len(content) < 0.3 * len(item_vectors.written(vectors))


def test_vectors_that_are_not_finite_are_never_written():
    with pytest.raises(ValueError, match="item vectors must be finite"):
        item_vectors.written(torch.full((2, 2), float("inf")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no", r"^v is damaged \(.*export the bundle again"),
        (save({"other": torch.ones(2, 2)}), r"v must hold 'vectors' float32 .*found \{'other'"),
        (save({"vectors": torch.ones(2, 2).half()}), r"v must hold .*found \{'vectors': 'torch.fl"),
        (save({"vectors": torch.ones(2, 2, dtype=torch.int8)}), "int8 beside 'scale' float32"),
        (save({"vectors": torch.full((1, 2), torch.nan)}), "v holds a number that is not finite"),
    ],
)
def test_vectors_of_another_form_are_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        item_vectors.read(content, "v")


def test_the_digest_is_of_what_it_recommends_and_not_of_the_run(tmp_path):
    one, other = written(tmp_path / "1"), written(tmp_path / "2")
    changed = written(tmp_path / "3", vectors=item_vectors.written(2 * torch.eye(3)))
    digests = [Bundle.read(str(place)).digest for place in (one, other, changed)]
    assert digests[0] == digests[1] != digests[2]
    assert json.loads((one / layout.SAMPLE).read_bytes())["request"] == {"history": ["a"], "k": 3}
