"""The exported graph predicts as torch does, whatever the model, the batch and the histories."""

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from infnet.baselines.floor import FloorConfig
from infnet.baselines.online_stack import OnlineStackConfig
from infnet.batch import Batch, SequenceBatch
from infnet.features.arrays import Arrays, SequenceArrays
from infnet.model.infnet import INFNetConfig, PooledTaskProxies
from infnet.model.recommender import Recommender
from infnet.schema import UNKNOWN, FieldSlot, Schema, SequenceSlot, TableSpec
from infnet.serve.bundle import Bundle, _session, difference, feeds
from infnet.serve.export import check_parity, export
from infnet.serve.onnx_graph import stored_tensors, write_graph
from infnet.tasks import BinaryTask, ConditionalTask, OrdinalTask, RegressionTask, ZilnTask
from rayrun import storage
from rayrun.config import ConfigError

SMALL = {"token_dim": 8, "num_blocks": 2, "proxy_hidden": (8,), "gate_hidden": (8,)}
CHOICES = {
    "num_heads": 2,
    "num_sequence_proxies": 2,
    "task_proxies": PooledTaskProxies(count=2),
    "pgu_source": "pre",
    "residual": False,
    "layer_norm": True,
    "dropout": 0.2,
}
NO_NORM = {"layer_norm": False}
TASKS = {
    "click": BinaryTask(label="click"),
    "order": ConditionalTask(label="order", given="like"),
    "like": ConditionalTask(label="like", given="click"),
    "spend": ZilnTask(label="spend"),
    "stars": OrdinalTask(label="stars", levels=5),
    "watch": RegressionTask(label="watch", target="smoothed", scale=90, non_negative=True),
    "ids": BinaryTask(label="ids"),
    "linear": RegressionTask(label="linear"),
}
"""Two have names that the graph uses for something else."""
SEQUENCES = (
    SequenceSlot(
        name="clicked",
        max_length=6,
        tables=("item", "author"),
        fields=("item", "author"),
        positions=True,
        decay=0.3,
        pooling="attention",
    ),
    SequenceSlot(name="liked", max_length=4, tables=("item",), fields=("item",), pooling="mean"),
    SequenceSlot(name="seen", max_length=6, tables=("tab",), fields=("tab",)),
)


def models(make_schema):
    plain = make_schema()
    rich = make_schema(tasks=TASKS, sequences=SEQUENCES)
    numbers = make_schema(tables={}, fields=(), sequences=())
    return {
        "infnet": (INFNetConfig(**SMALL), plain),
        "infnet with every choice": (INFNetConfig(**{**SMALL, **CHOICES}), rich),
        "infnet with most choices": (INFNetConfig(**{**SMALL, **CHOICES, **NO_NORM}), rich),
        "infnet on numbers alone": (INFNetConfig(**SMALL), numbers),
        "floor": (FloorConfig(), rich),
        "online_stack": (
            OnlineStackConfig(attention_softmax=True, expert_hidden=(16, 8), cross_layers=2),
            rich,
        ),
    }


def written(folder: Path, config, schema: Schema) -> tuple[Recommender, Path]:
    """A model with weights that nobody trained, and its graph."""
    torch.manual_seed(0)
    recommender = Recommender(config, schema).eval()
    for weight in recommender.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    save_file(recommender.tables.state_dict(), folder / "tables.safetensors")
    write_graph(
        recommender.network, config, schema, folder / "tables.safetensors", folder / "model.onnx"
    )
    return recommender, folder / "model.onnx"


@pytest.fixture(scope="module")
def graph_of(make_schema, tmp_path_factory):
    """(schema, recommender, path of the graph) of a model, made once."""
    made = {}

    def of(name: str) -> tuple[Schema, Recommender, Path]:
        if name not in made:
            config, schema = models(make_schema)[name]
            made[name] = (schema, *written(tmp_path_factory.mktemp("graph"), config, schema))
        return made[name]

    return of


def arrays(batch: Batch) -> Arrays:
    return Arrays(
        ids=batch.ids.numpy(),
        dense=batch.dense.numpy(),
        sequences={
            name: SequenceArrays(s.ids.numpy(), s.ages.numpy(), s.lengths.numpy())
            for name, s in batch.sequences.items()
        },
    )


def unknown(batch: Batch) -> Batch:
    """Nothing about these rows is known: unseen ids, no numbers, no histories."""
    empty = {
        name: SequenceBatch(
            torch.zeros_like(s.ids[:, :1]), torch.zeros_like(s.ages[:, :1]), s.lengths * 0
        )
        for name, s in batch.sequences.items()
    }
    ids, dense = torch.full_like(batch.ids, UNKNOWN), torch.zeros_like(batch.dense)
    return Batch(**{**vars(batch), "ids": ids, "dense": dense, "sequences": empty})


def one_event(batch: Batch) -> Batch:
    """The same rows, of whose histories only the first event is left."""
    first = {
        name: SequenceBatch(s.ids[:, :1], s.ages[:, :1], s.lengths.clamp(max=1))
        for name, s in batch.sequences.items()
    }
    return Batch(**{**vars(batch), "sequences": first})


@pytest.mark.parametrize(
    "name",
    [
        "infnet",
        "infnet with every choice",
        "infnet on numbers alone",
        "floor",
        "online_stack",
    ],
)
def test_the_graph_predicts_as_torch_does(name, graph_of, make_batch, pad):
    schema, recommender, path = graph_of(name)
    session = _session(path, "bundle", 1)
    inputs = [value.name for value in session.get_inputs()]
    batches = {
        "one row": make_batch(schema, 1),
        "two rows": make_batch(schema, 2, seed=1),
        "many rows": make_batch(schema, 65, seed=2),
        "padded": pad(make_batch(schema, 7, seed=3), by=5),
        "no events": make_batch(schema, 5, seed=4, empty=True),
        "one event": one_event(make_batch(schema, 6, seed=5)),
        "nothing known": unknown(make_batch(schema, 3, seed=6)),
        "nothing known of one row": unknown(make_batch(schema, 1, seed=7)),
    }
    for what, batch in batches.items():
        values = feeds(arrays(batch))
        found = session.run(None, {name: values[name] for name in inputs})
        expected = recommender.predict(batch)
        for (task, answer), value in zip(expected.items(), found, strict=True):
            apart = difference(value, answer.numpy(), schema.tasks[task])
            assert value.dtype == np.float32
            assert apart.max() < 1e-5, (what, task)
    named = [value.name for value in session.get_outputs()]
    assert named == [task if task != "ids" else "predict.ids" for task in schema.tasks]


SHARING = ["infnet", "infnet with most choices", "infnet on numbers alone", "floor"]


@pytest.mark.parametrize("name", SHARING)
def test_one_history_for_all_rows_is_the_same_as_a_copy_for_each(name, graph_of, make_batch):
    schema, recommender, path = graph_of(name)
    session = _session(path, "bundle", 1)
    inputs = [value.name for value in session.get_inputs()]
    for rows, empty in ((1, False), (2, False), (9, True), (65, False)):
        batch = make_batch(schema, rows, seed=rows, empty=empty)
        one = {
            name: SequenceArrays(s.ids[:1].numpy(), s.ages[:1].numpy(), s.lengths[:1].numpy())
            for name, s in batch.sequences.items()
        }
        shared = dataclasses.replace(arrays(batch), sequences=one)
        copies = {
            name: SequenceBatch(*(torch.from_numpy(v) for v in vars(s).values()))
            for name, s in shared.per_row().sequences.items()
        }
        expected = recommender.predict(dataclasses.replace(batch, sequences=copies))
        values = feeds(shared)
        found = session.run(None, {name: values[name] for name in inputs})
        for (task, answer), value in zip(expected.items(), found, strict=True):
            assert difference(value, answer.numpy(), schema.tasks[task]).max() < 1e-5, (rows, task)


def test_a_model_that_reads_each_row_by_itself_has_one_number_of_rows(graph_of):
    for name in ("infnet with every choice", "online_stack"):
        inputs = _session(graph_of(name)[2], "bundle", 1).get_inputs()
        assert {value.shape[0] for value in inputs} == {"rows"}


def test_tables_lie_beside_the_graph_and_are_mapped(graph_of, make_batch):
    schema, recommender, path = graph_of("infnet")
    graph = onnx.load(path, load_external_data=False).graph
    outside = {i.name: i for i in graph.initializer if i.external_data}
    assert len(outside) == len(schema.tables)
    assert {tuple(i.dims) for i in outside.values()} == {
        tuple(e.weight.shape) for e in recommender.tables.embeddings
    }
    assert not any(i.raw_data for i in outside.values())
    assert b".py" not in path.read_bytes()  # no path of a source file
    tables = path.parent / "tables.safetensors"
    session = _session(path, "bundle", 1)
    maps = Path(f"/proc/{os.getpid()}/maps")
    if maps.exists():
        assert str(tables) in maps.read_text()
    batch = make_batch(schema, 4)
    before = session.run(None, feeds(arrays(batch)))[0]
    state = recommender.tables.state_dict()
    (path.parent / "other").mkdir()
    save_file(
        {name: weight + 1 for name, weight in state.items()}, path.parent / "other" / tables.name
    )
    shutil.copy(path, path.parent / "other")
    other = _session(path.parent / "other" / path.name, "bundle", 1)
    after = other.run(None, feeds(arrays(batch)))[0]
    assert np.abs(after - before).max() > 1e-3


def test_a_table_of_more_than_two_gigabytes(make_batch, tmp_path):
    rows, dim = 70_000_000, 8
    length = rows * dim * 4
    assert length > 2**31
    entry = {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, length]}
    header = json.dumps({"embeddings.0.weight": entry}).encode()
    header += b" " * (-len(header) % 8)
    tables = tmp_path / "tables.safetensors"
    last = np.linspace(-1, 1, dim, dtype=np.float32)
    with tables.open("wb") as file:  # sparse: only the ends take room on the disk
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + length)
        file.seek(-last.nbytes, os.SEEK_END)
        file.write(last.tobytes())
    schema = Schema(
        tables={"item": TableSpec(rows=rows, dim=dim)},
        fields=(FieldSlot(name="item", table="item"),),
        dense=(),
        sequences=(),
        tasks={"click": BinaryTask(label="click")},
        encoder_digest="sha256:0",
    )
    config = OnlineStackConfig(cross_layers=1, ple_layers=1, expert_hidden=(8,))
    torch.manual_seed(0)
    network = config.build(schema).eval()
    stored = write_graph(network, config, schema, tables, tmp_path / "model.onnx")
    assert stored["embeddings.0.weight"].shape == (rows, dim)
    assert (tmp_path / "model.onnx").stat().st_size < 1e5
    session = _session(tmp_path / "model.onnx", "bundle", 1)
    ids = np.array([[rows - 1], [2]])
    (found,) = session.run(None, {"ids": ids, "dense": np.zeros((2, 0), np.float32)})
    small = schema.model_copy(update={"tables": {"item": TableSpec(rows=2, dim=dim)}})
    twin = Recommender(config, small).eval()
    twin.network.load_state_dict(network.state_dict())
    with torch.no_grad():
        twin.tables.embeddings[0].weight.copy_(
            torch.stack([torch.from_numpy(last), torch.zeros(dim)])
        )
    batch = make_batch(small, 2)
    expected = twin.predict(Batch(**{**vars(batch), "ids": torch.tensor([[0], [1]])}))["click"]
    assert np.abs(found - expected.numpy()).max() < 1e-6
    assert abs(found[0] - found[1]) > 1e-4


def test_a_bundle_is_whole_and_says_what_it_is(exported, trained_run, at_run):
    assert {name for name in storage.names(str(exported)) if "/" not in name} == {
        "config.yaml",
        "manifest.json",
        "model.onnx",
        "report.html",
        "result.json",
        "sample.json",
        "schema.json",
        "tables.safetensors",
    }
    for name in storage.names(str(trained_run / "encoder")):
        assert (exported / "encoder" / name).read_bytes() == (
            trained_run / "encoder" / name
        ).read_bytes()
    of_run = trained_run / "checkpoint" / "tables.safetensors"
    assert (exported / "tables.safetensors").read_bytes() == of_run.read_bytes()
    details = json.loads((exported / "result.json").read_text())["details"]
    assert details["digest"] == Bundle.open(str(exported)).digest
    assert set(details["parity"]) == {"click", "spend"}
    assert max(details["parity"].values()) < 1e-5
    weights = stored_tensors(of_run).values()
    assert details["parameters"]["tables"] == sum(int(np.prod(w.shape)) for w in weights)
    assert details["bytes"]["tables.safetensors"] == of_run.stat().st_size
    assert "Serve bundle of served" in (exported / "report.html").read_text()


def test_the_digest_depends_on_the_model_and_not_on_the_place(trained_run, at_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "moved")
    export(at_run(trained_run), str(tmp_path / "one"), rival="logistic")
    elsewhere = at_run(tmp_path / "moved", data="/other")
    serve = elsewhere.serve.model_copy(update={"max_candidates": 7})
    export(elsewhere.model_copy(update={"serve": serve}), str(tmp_path / "two"), rival="logistic")
    one, two = (Bundle.open(str(tmp_path / name)) for name in ("one", "two"))
    assert one.digest == two.digest
    assert one.config["model"]["type"] == "floor"
    assert two.config["serve"]["max_candidates"] == 7


def test_a_rival_that_was_not_trained_is_refused(trained_run, at_run, tmp_path):
    with pytest.raises(ConfigError, match="--rival must name a rival .*: logistic; found 'din'"):
        export(at_run(trained_run), str(tmp_path / "out"), rival="din")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_sample_is_refused(trained_run, at_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "old")
    (tmp_path / "old" / "sample.json").unlink()
    with pytest.raises(ConfigError, match=r"has no sample\.json, .* an earlier version prepared"):
        export(at_run(tmp_path / "old"), str(tmp_path / "out"))


def test_a_run_is_required(at_run, tmp_path):
    with pytest.raises(ConfigError, match=r"inputs\.checkpoint must name the --out directory"):
        export(at_run(""), str(tmp_path / "out"))


def test_a_model_that_has_diverged_is_not_published(trained_run, at_run, tmp_path):
    from infnet.train import checkpoint

    run = tmp_path / "diverged"
    shutil.copytree(trained_run, run)
    place = run / "rivals" / "logistic"
    model, schema, trained = checkpoint.load(place)
    broken = {name: weight * float("nan") for name, weight in model.network.state_dict().items()}
    checkpoint.write(
        str(place / "checkpoint"),
        config=trained,
        schema=schema,
        network=broken,
        tables=model.tables.state_dict(),
        info={},
    )
    with pytest.raises(ConfigError, match=r"click of the sample is \[nan, .* has diverged"):
        export(at_run(run), str(tmp_path / "out"), rival="logistic")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_differs_from_torch_is_not_published():
    expected = {"click": np.array([0.5, 0.25]), "spend": np.array([1e6, 3.0])}
    close = {"click": np.array([0.5, 0.250001]), "spend": np.array([1e6 + 1, 3.0])}
    tasks = {"click": BinaryTask(label="click"), "spend": ZilnTask(label="spend")}
    assert check_parity(close, expected, tasks) == pytest.approx({"click": 1e-6, "spend": 1e-6})
    apart = {**close, "click": np.array([0.5, 0.2501])}
    with pytest.raises(RuntimeError, match=r"to 1e-05: click of candidates\[1\] is 0\.2501 in the"):
        check_parity(apart, expected, tasks)
