"""The JSON files between the verbs: damaged, newer, or of layers that are not there."""

import json

import pytest

from layer_select.compact.origin import Origin
from layer_select.plan import Plan
from layer_select.scores import Scores
from rayrun.config import ConfigError

PLAN = Plan(
    model="sha256:a",
    task="sha256:t",
    num_layers=4,
    kept=(0, 3),
    budget={"layers": 2},
    strategy={"type": "block"},
)
ORIGIN = Origin(model="sha256:a", num_layers=4, kept=(0, 3))
READERS = [
    (Plan, "plan.json", "select again"),
    (Scores, "scores.json", "score again"),
    (Origin, "compaction.json", "compact the model again"),
]


@pytest.mark.parametrize("written", [PLAN, ORIGIN], ids=["plan", "origin"])
def test_what_is_written_is_read_back(tmp_path, written):
    written.write(tmp_path)
    assert type(written).read(tmp_path) == written


@pytest.mark.parametrize(("kind", "name", "again"), READERS, ids=lambda x: str(x)[:12])
def test_damaged_and_newer_files_are_told(tmp_path, kind, name, again):
    (tmp_path / name).write_text('{"format_version": 1, ')
    with pytest.raises(ConfigError, match=f"{name} is damaged .*; {again}"):
        kind.read(tmp_path)
    (tmp_path / name).write_text('{"format_version": 9}')
    with pytest.raises(ConfigError, match=f"{name} has format_version 9; .* or {again}"):
        kind.read(tmp_path)
    (tmp_path / name).write_text("[]")
    with pytest.raises(ConfigError, match=name):
        kind.read(tmp_path)


@pytest.mark.parametrize("kind", [PLAN, ORIGIN], ids=["plan", "origin"])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "at least one layer, ascending, each once"),
        ([3, 0], "at least one layer, ascending, each once"),
        ([0, 0], "at least one layer, ascending, each once"),
        ([0, 4], r"must lie in 0\.\.3, the layers of the model"),
        ([-1, 2], r"must lie in 0\.\.3, the layers of the model"),
    ],
)
def test_layers_that_are_not_there_are_refused(tmp_path, kind, kept, message):
    kind.write(tmp_path)
    file = next(tmp_path.iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kept": kept}))
    with pytest.raises(ConfigError, match=message):
        type(kind).read(tmp_path)
