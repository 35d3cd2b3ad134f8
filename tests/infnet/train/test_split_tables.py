"""Tables split by rows over workers: what is learnt, held, saved and published is that of whole ones.

Processes joined by gloo; every group of them does several things, for starting one costs most.
"""

import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infnet.model.tables import EmbeddingTables, Share
from infnet.schema import UNKNOWN, FieldSlot, TableSpec
from infnet.train.arithmetic import batch_arithmetic
from infnet.train.learner import Learner
from infnet.train.loop import Place, fit
from infnet.train.shards import share_of
from infnet.train.touched import coalesced
from rayrun.config import ConfigError
from rayrun.ray.worker import SingleWorker
from tests.infnet.train import written_dataset as written
from tests.infnet.train.gloo import together

OPTIMIZERS = ("adam", "adagrad", "rowwise_adagrad")
FEATURES = (
    "features={user: {type: categorical, column: user, shard: rows}, "
    "item: {type: categorical, column: item, shard: rows}}"
)
"""Both tables of the written dataset are split; item has cold_start: mean and a sequence."""
TABLES = ("user", "item")


def config(*sets, workers=2, split=True):
    layout = (FEATURES,) if split else ()
    return written.config(
        "train.strategy={type: ddp}",
        f"compute.workers={workers}",
        "train.micro_batch_size=8",
        *layout,
        *sets,
    )


def learner_of(worker, made):
    arithmetic = batch_arithmetic(
        batch_size=made.train.batch_size,
        workers=worker.world_size,
        micro_batch_size=made.train.micro_batch_size,
        lanes=made.train.lanes,
    )
    return Learner(made, written.schema(), arithmetic, worker, total_steps=26)


def of_table(learner, table):
    """Rows and optimizer state that this worker holds."""
    name = f"embeddings.{learner.recommender.tables.names.index(table)}.weight"
    return learner.recommender.tables.table(table).weight.detach(), learner.rows.state[name]


# ---------------------------------------------------------------------------------------------
# On two workers


def on_two(worker, dataset, out):
    """Everything that two workers do in this file."""
    found = {"first": first_step(worker, dataset)}
    worker.latest_checkpoint = lambda: None  # each of them is a run of its own
    for kind in OPTIMIZERS:
        for split in (True, False):
            made = config(f"train.embeddings={{type: {kind}, lr: 0.01, l2: 1e-3}}", split=split)
            place = Place(dataset, f"{out}/{kind}-{'split' if split else 'whole'}")
            outcome = fit(worker, made, written.schema(), place)
            assert outcome["steps"] == 26
    return found


def first_step(worker, dataset):
    """What a worker holds at first, its logits, and the gradients that it is to apply."""
    from infnet.data.loader import TrainLoader

    loader = TrainLoader(
        dataset,
        written.schema(),
        batch_size=32,
        rank=worker.rank,
        world_size=2,
        lanes=2,
        shuffle_rows=64,
        seed=0,
    )
    batch = next(iter(loader.epoch(0)))
    found = {}
    for split in (True, False):
        learner = learner_of(worker, config(split=split))
        tables, calls = learner.recommender.tables, []
        send = worker.exchange
        worker.exchange = lambda *given, send=send, calls=calls: (calls.append(1), send(*given))[1]
        held = {name: [part.clone() for part in of_table(learner, name)] for name in TABLES}
        brought = learner.shards.bring(batch)
        logits = learner.recommender(batch, brought)
        sum(each.square().sum() for each in logits.values()).backward()
        if split:
            taken = learner.shards.take_back(brought)
        else:
            parameters = dict(tables.named_parameters())
            from infnet.train.rows import exchange

            taken = exchange({n: coalesced(n, p) for n, p in parameters.items()}, worker)
        del worker.exchange
        taken = {name: tuple(touched) for name, touched in taken.items()}
        logits = {name: each.detach() for name, each in logits.items()}
        found[split] = (held, logits, taken, len(calls))
    return found


@pytest.fixture(scope="module")
def two(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return out, together(on_two, 2, dataset, str(out))


def test_a_worker_holds_every_second_row_and_its_state(two):
    """Memory: rows / workers of a table, and of Adam's moments; the rows begin as in a whole one."""
    for rank, found in enumerate(two[1]):
        split, whole = (found["first"][kind][0] for kind in (True, False))
        for name, spec in written.schema().tables.items():
            weight, state = split[name]
            assert weight.shape == (spec.rows // 2, spec.dim)
            assert state.shape == (spec.rows // 2, 2 * spec.dim)
            assert torch.equal(weight, whole[name][0][rank::2])


def test_logits_are_those_of_whole_tables(two):
    for found in two[1]:
        split, whole = (found["first"][kind][1] for kind in (True, False))
        assert all(torch.equal(split[task], logits) for task, logits in whole.items())


def test_gradients_come_added_up_to_who_holds_the_row(two):
    for rank, found in enumerate(two[1]):
        split, whole = (found["first"][kind][2] for kind in (True, False))
        for name, (rows, gradients) in whole.items():
            mine = rows % 2 == rank
            assert mine.any()
            assert not mine.all()
            assert torch.equal(split[name][0], rows[mine] // 2)
            assert torch.equal(split[name][1], gradients[mine])


def test_all_split_tables_travel_together(two):
    """Counts, ids and rows on the way there; counts, ids and gradients on the way back."""
    assert [found["first"][True][3] for found in two[1]] == [6, 6]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_split_run_publishes_what_a_whole_one_does_byte_for_byte(kind, two):
    """After 26 steps: weights, the mean of an unseen id over both workers, and every metric."""
    split, whole = (two[0] / f"{kind}-{layout}" for layout in ("split", "whole"))
    for name in (
        "checkpoint/tables.safetensors",
        "checkpoint/network.safetensors",
        "metrics.jsonl",
    ):
        assert (split / name).read_bytes() == (whole / name).read_bytes(), name
    item = load_file(split / "checkpoint/tables.safetensors")["embeddings.1.weight"]
    torch.testing.assert_close(item[UNKNOWN], item[2:].mean(0), rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------
# Another number of workers

STOPS = ((1, 5), (2, 9), (3, 15), (1, 99))
"""Workers, and the step at which they are killed; a checkpoint every second step."""
MOVING = ("train.batch_size=36", "train.lanes=6", "train.micro_batch_size=6")


class Killed(Exception):
    pass


def attempt(worker, dataset, folder, workers, stop):
    """Train on from the checkpoint that lies there, and die after a step."""
    worker.directory = Path(folder) / "state"
    worker.directory.mkdir(exist_ok=True)

    def progress(done, total, note=""):
        if done > stop:
            raise Killed

    worker.progress = progress
    made = config(*MOVING, "train.checkpoint_every_steps=2", workers=workers)
    try:
        return fit(worker, made, written.schema(), Place(dataset, f"{folder}/out"))["started_at"]
    except Killed:
        newest = worker.latest_checkpoint()
        return sorted(path.name for path in newest.glob("tables*"))


def test_a_run_goes_on_with_any_number_of_workers(dataset, tmp_path):
    """1 → 2 → 3 → 1 workers. Only the order of float32 sums differs from a run on one: see
    test_workers.py for the tolerance, which is that of Adam's steps.
    """
    found = [together(attempt, w, dataset, str(tmp_path), w, stop)[0] for w, stop in STOPS]
    assert found[0] == ["tables.safetensors"]
    assert found[1] == [f"tables.{rank}-of-2.safetensors" for rank in range(2)] + found[0]
    assert found[2] == [f"tables.{rank}-of-3.safetensors" for rank in range(3)] + found[0]
    assert found[3] == 14
    worker = SingleWorker(tmp_path / "alone")
    whole = config(*MOVING, "train.checkpoint_every_steps=2", workers=1, split=False)
    fit(worker, whole, written.schema(), Place(dataset, str(tmp_path / "whole")))
    tolerance = 10 * 22 * 0.01 * 1e-4
    for name in ("tables", "network"):
        expected = load_file(tmp_path / "whole" / "checkpoint" / f"{name}.safetensors")
        for key, tensor in load_file(tmp_path / "out/checkpoint" / f"{name}.safetensors").items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=tolerance)


# ---------------------------------------------------------------------------------------------
# Less memory than a table needs

ROWS = 2_000_000
NEEDED = 3 * ROWS * 8 * 4
"""Bytes of a table 8 wide with the two moments of Adam: 192 MB."""
ROOM = NEEDED * 3 // 4


def limited(worker, dataset, out):
    """Train on a large table in a process that may allocate `ROOM` more than it has already."""
    made = config("train.epochs=1", workers=worker.world_size)
    fit(worker, made, written.schema(), Place(dataset, f"{out}/small"))
    said = Path("/proc/self/status").read_text()
    data = 1024 * int(said.split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (data + ROOM, data + ROOM))
    worker.latest_checkpoint = lambda: None
    user = TableSpec(rows=ROWS, dim=8)
    schema = written.schema()
    schema = schema.model_copy(update={"tables": {**schema.tables, "user": user}})
    return fit(worker, made, schema, Place(dataset, f"{out}/large"))["steps"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA of Linux")
def test_a_table_that_one_worker_has_no_memory_for_is_trained_by_two(dataset, tmp_path):
    """Trained, validated, saved and published: no worker ever holds more than its half."""
    with pytest.raises(AssertionError, match=r"worker 0:(.|\n)*can't allocate memory"):
        together(limited, 1, dataset, str(tmp_path / "one"))
    assert together(limited, 2, dataset, str(tmp_path / "two")) == [13, 13]
    published = load_file(tmp_path / "two/large/checkpoint/tables.safetensors")
    assert published["embeddings.0.weight"].shape == (ROWS, 8)


# ---------------------------------------------------------------------------------------------
# Alone


@pytest.mark.parametrize("rows", [5, 33, 70_000])
@pytest.mark.parametrize("workers", [2, 3])
def test_a_row_begins_the_same_whoever_holds_it(rows, workers, make_schema):
    """And so does what is drawn after the tables: the network."""
    schema = make_schema(
        tables={"a": TableSpec(rows=rows, dim=8), "b": TableSpec(rows=9, dim=8)},
        fields=(FieldSlot(name="a", table="a"), FieldSlot(name="b", table="b")),
        sequences=(),
    )

    def drawn(share, copies):
        torch.manual_seed(3)
        tables = EmbeddingTables(schema, copies, share=share)
        return tables.table("a").weight, tables.table("b").weight, torch.rand(1)

    for copies in (1, 3):
        whole = drawn(Share(), copies)
        for rank in range(workers):
            split = drawn(Share(rank, workers, frozenset({"a"})), copies)
            assert torch.equal(split[0], whole[0][rank::workers])
            assert torch.equal(split[1], whole[1])
            assert torch.equal(split[2], whole[2])


class Many(SingleWorker):
    world_size = 31


def test_a_table_with_fewer_rows_than_workers_is_not_split(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"features.user.shard: rows needs a row for each worker: the table 'user' has 30 rows, "
        r"compute.workers is 31; leave shard out",
    ):
        share_of(config(workers=2), written.schema(), Many(tmp_path))


def test_a_table_that_the_dataset_does_not_have_is_not_split(tmp_path):
    tables = {"author": "{type: categorical, column: author, shard: rows}"}
    made = written.config(*(f"features.{name}={feature}" for name, feature in tables.items()))
    with pytest.raises(
        ConfigError, match=r"features.author.shard: rows splits the table 'author', w"
    ):
        share_of(made, written.schema(), SingleWorker(tmp_path))


def test_fields_of_one_table_must_agree():
    one, other = (
        "{type: categorical, column: a, table: t, shard: rows}",
        "{type: categorical, column: b, table: t}",
    )
    with pytest.raises(
        ConfigError, match=r"features.y.shard must equal features.x.shard: they share the table 't'"
    ):
        written.config(f"features.x={one}", f"features.y={other}")


def test_a_sequence_says_it_of_its_own_tables_only():
    own = "{type: sequence, fields: [user], share_tables: false, shard: rows}"
    assert "past.user" in written.config(f"features.past={own}").split_tables
    with pytest.raises(ConfigError, match=r"shard: rows needs tables of this behaviour alone \(sh"):
        written.config("features.past={type: sequence, fields: [user], shard: rows}")


def test_where_a_table_lies_is_no_part_of_what_is_learnt():
    assert (
        config().digest()
        == config("features.item={type: categorical, column: item}", split=False).digest()
    )
