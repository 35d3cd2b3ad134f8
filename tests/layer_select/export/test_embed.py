"""`layer-select embed` without Ray: the vectors, shared out over workers and resumed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from layer_select.config import LayerSelectConfig
from layer_select.export import embed as verb
from layer_select.export.embed import on_worker, plan
from layer_select.export.ranking import last_hidden
from layer_select.opened import open_inputs
from layer_select.sources import HuggingFace, load
from layer_select.task.batch import TaskBatch
from rayrun.config import ConfigError, validate
from rayrun.ray.worker import SingleWorker


class OneOf(SingleWorker):
    """One of several workers, that are run one after the other."""

    def __init__(self, directory: Path, rank: int, world_size: int) -> None:
        super().__init__(directory)
        self.rank, self.world_size = rank, world_size


@pytest.fixture(scope="module")
def config(tiny_config, tiny_model) -> LayerSelectConfig:
    raw = tiny_config.to_dict()
    raw["inputs"]["model"] = str(tiny_model)
    raw["data"]["users"] = 150
    raw["task"]["micro_batch"] = 8
    return validate(LayerSelectConfig, raw, where="test")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(config: LayerSelectConfig, folder: Path, workers: int = 1) -> list[int]:
    argument = {
        "config": config.to_dict(),
        "task": open_inputs(config).task.digest,
        "infnet_data": "",
        "parts": str(folder / "parts"),
    }
    return [
        on_worker(OneOf(folder / f"{rank}", rank, workers), argument)["written"]
        for rank in range(workers)
    ]


def rows(folder: Path, kind: str) -> pa.Table:
    places = sorted((folder / "parts").glob(f"{kind}-*.parquet"))
    return pa.concat_tables([pq.read_table(place) for place in places])


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert run(config, folder) == [4]  # one part of 120 items, three of 64 users at most
    return folder


def test_items_have_the_vectors_of_the_task_and_users_those_of_their_history(config, alone):
    opened = open_inputs(config)
    decoder = load(HuggingFace(path=config.inputs.model).open())
    items = rows(alone, "items")
    assert items["item"].to_pylist() == list(opened.task.sequences.items)
    assert items["title"].to_pylist() == list(opened.task.sequences.titles)
    assert items.schema.field("vector").type == pa.list_(pa.float32())
    expected = opened.task.objective(decoder).vectors
    torch.testing.assert_close(torch.tensor(items["vector"].to_pylist()), expected)

    users = rows(alone, "users")
    assert users["user"].to_pylist() == list(opened.task.sequences.users)
    for at in (0, 70, 149):  # of each part, alone and without padding
        seen = opened.task.sequences.histories[at][:-2][-config.task.max_history :]
        ids = torch.tensor([opened.task.prompts.of(seen)])
        zero = torch.zeros(1, dtype=torch.int64)
        one = TaskBatch(ids=ids, mask=torch.ones_like(ids), sample=zero, target=zero)
        found = torch.tensor(users["vector"][at].as_py())
        torch.testing.assert_close(found, last_hidden(decoder, one)[0], rtol=1e-4, atol=1e-5)


def test_three_workers_write_what_one_writes(config, alone, tmp_path):
    assert run(config, tmp_path, workers=3) == [2, 1, 1]
    for kind in ("items", "users"):
        assert rows(tmp_path, kind).equals(rows(alone, kind))


def test_a_second_call_writes_only_what_is_missing(config, alone, tmp_path):
    (tmp_path / "parts").mkdir()
    for place in (alone / "parts").iterdir():
        (tmp_path / "parts" / place.name).write_bytes(place.read_bytes())
    (tmp_path / "parts" / "users-000000000064.parquet").unlink()
    assert run(config, tmp_path) == [1]
    assert rows(tmp_path, "users").equals(rows(alone, "users"))


def test_vectors_may_have_length_one_and_users_may_be_left_out(config, alone, tmp_path):
    only = config.embed.model_copy(update={"users": False, "normalise": True})
    assert run(config.model_copy(update={"embed": only}), tmp_path) == [1]
    assert not list((tmp_path / "parts").glob("users*"))
    found = torch.tensor(rows(tmp_path, "items")["vector"].to_pylist())
    before = torch.tensor(rows(alone, "items")["vector"].to_pylist())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    torch.testing.assert_close(found * before.norm(dim=1, keepdim=True), before)


def test_the_parts_become_one_file_in_order(alone, tmp_path):
    places = sorted(map(str, (alone / "parts").glob("users-*.parquet")))
    verb._joined(places, tmp_path / "users")
    assert pq.read_table(tmp_path / "users.parquet").equals(rows(alone, "users"))


def test_vectors_that_are_not_finite_are_refused(config, tiny_model, tmp_path):
    broken = load(HuggingFace(path=str(tiny_model)).open())
    broken.body.embed_tokens.weight.data[:] = torch.nan
    message = "the model gives items vectors that are not finite; is it damaged"
    with pytest.raises(ConfigError, match=message):
        verb._table(verb._Rows(config, open_inputs(config)), broken, "items", 0, 5)


def test_the_plan_counts_the_vectors(config, tiny_config):
    text = plan(config, "nowhere")
    assert "vectors: 120 items, 150 users, width 32" in text
    assert "parts: 4 on 1 workers" in text
    assert "none is named; embed makes the one of pretrain:" in plan(tiny_config, "nowhere")
