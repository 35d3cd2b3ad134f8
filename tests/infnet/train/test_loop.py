"""The loop on one worker: resumed equals uninterrupted, early stopping, what is kept, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infnet.config import EarlyStopping
from infnet.train import checkpoint
from infnet.train.journal import Journal, check_watched, watched_score
from infnet.train.loop import Place, fit
from infnet.train.report import report
from rayrun.config import ConfigError
from rayrun.metrics import read_records
from rayrun.ray.worker import SingleWorker
from tests.infnet.train import written_dataset as written

BASE = ("model.dropout=0.2", "train.micro_batch_size=16", "train.checkpoint_every_steps=5")


class Killed(Exception):
    """A process that ends here."""


class Mortal(SingleWorker):
    """Dies at its first sign of progress past a step, as a killed process does: no clean-up, no checkpoint."""

    def __init__(self, directory, dies_after):
        super().__init__(directory)
        self.dies_after = dies_after

    def progress(self, done, total, note=""):
        if done > self.dies_after:
            raise Killed


def trained(worker, config, dataset, out):
    return fit(worker, config, written.schema(), Place(dataset, str(out)))


def weights(out):
    found = load_file(Path(out) / "checkpoint" / "network.safetensors")
    return found | load_file(Path(out) / "checkpoint" / "tables.safetensors")


def state(directory):
    """Every tensor of the newest training state: weights, both optimizers."""
    newest = SingleWorker(directory).latest_checkpoint()
    tensors = {}
    for path in newest.glob("*.safetensors"):
        tensors |= {f"{path.stem}.{k}": v for k, v in load_file(path).items()}
    if not (newest / "optimizer.pt").exists():
        return tensors
    optimizer = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
    for key, values in optimizer.items():
        tensors |= {f"optimizer.{key}.{name}": value for name, value in values.items()}
    return tensors


MODELS = {
    "adam": (),
    "adagrad, cosine, l2": (
        "train.optimizer={type: adagrad, lr: 0.05, schedule: cosine, warmup_steps: 3, clip_norm: 0.5}",
        "train.embeddings={type: rowwise_adagrad, lr: 0.05, l2: 1e-3}",
    ),
    "adamw, learned weights": (
        "train.optimizer={type: adamw, lr: 0.01, weight_decay: 0.1}",
        "train.weighting={type: uncertainty}",
    ),
    "zero_1": ("train.strategy={type: deepspeed, zero_stage: 1}",),
    "zero_3": ("train.strategy={type: deepspeed, zero_stage: 3}",),
}


@pytest.mark.parametrize("sets", MODELS.values(), ids=MODELS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(sets, dataset, tmp_path):
    """Stopped in the middle of each epoch, between two checkpoints; dropout and accumulation are on."""
    config = written.config(*BASE, *sets)
    whole = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "whole")
    for dies_after in (7, 18):
        with pytest.raises(Killed):
            trained(Mortal(tmp_path / "b", dies_after), config, dataset, tmp_path / "pieces")
    pieces = trained(SingleWorker(tmp_path / "b"), config, dataset, tmp_path / "pieces")
    assert pieces["started_at"] == 15
    assert whole["started_at"] == 0
    expected, found = state(tmp_path / "a"), state(tmp_path / "b")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "pieces")[name], tensor), name
    assert (tmp_path / "pieces" / "metrics.jsonl").read_text() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_text()
    assert pieces["metrics"] == whole["metrics"]


def test_dropout_differs_between_steps_and_seeds_change_the_weights(dataset, tmp_path):
    one = written.config(*BASE, "train.epochs=1")
    other = written.config(*BASE, "train.epochs=1", "train.seed=1")
    trained(SingleWorker(tmp_path / "a"), one, dataset, tmp_path / "one")
    trained(SingleWorker(tmp_path / "b"), other, dataset, tmp_path / "other")
    assert not torch.equal(
        weights(tmp_path / "one")["embeddings.0.weight"],
        weights(tmp_path / "other")["embeddings.0.weight"],
    )


def test_a_finished_run_does_nothing_more(dataset, tmp_path):
    config = written.config("train.epochs=1")
    first = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")
    again = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")
    assert again["started_at"] == again["steps"] == first["steps"] == 13
    assert again["metrics"] == first["metrics"]


def test_training_learns(dataset, tmp_path):
    config = written.config("train.epochs=12")
    outcome = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")
    assert outcome["metrics"]["click"]["auc"] > 0.7
    records = read_records(tmp_path / "out" / "metrics.jsonl")
    losses = [r.value for r in records if (r.split, r.task, r.name) == ("train", "click", "loss")]
    assert losses[-1] < losses[0] - 0.1


def test_every_model_trains(dataset, tmp_path):
    for model in ("{type: floor}", "{type: online_stack}"):
        config = written.config(f"model={model}", "train.epochs=1")
        trained(SingleWorker(tmp_path / model / "a"), config, dataset, tmp_path / model / "out")
        (tmp_path / model / "out" / "schema.json").write_bytes(
            (Path(dataset) / "schema.json").read_bytes()
        )
        recommender, _, loaded = checkpoint.load(tmp_path / model / "out")
        assert loaded.model == config.model
        assert not recommender.training


def test_bf16_trains_close_to_fp32(dataset, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        config = written.config("train.epochs=1", f"train.precision={precision}")
        try:
            outcome = trained(
                SingleWorker(tmp_path / precision), config, dataset, tmp_path / precision / "out"
            )
        except ConfigError as error:
            pytest.skip(str(error))
        found[precision] = outcome["metrics"]["click"]["loss"]
    # 8 bits of mantissa: 2⁻⁸ relative error of a product, here of a loss near 0.6
    assert found["bf16"] == pytest.approx(found["fp32"], abs=0.6 * 4 * 2**-8)
    assert found["bf16"] != found["fp32"]


def test_the_tables_train_on_as_if_no_evaluation_had_been(dataset, tmp_path):
    """Publishing fills the row of unseen ids in; training must not see that."""
    often = written.config(
        "train.epochs=1", "train.evaluate_every_steps=2", "train.checkpoint_every_steps=13"
    )
    once = written.config("train.epochs=1", "train.checkpoint_every_steps=13")
    trained(SingleWorker(tmp_path / "a"), often, dataset, tmp_path / "often")
    trained(SingleWorker(tmp_path / "b"), once, dataset, tmp_path / "once")
    expected = state(tmp_path / "a")
    for name, tensor in state(tmp_path / "b").items():
        assert torch.equal(expected[name], tensor), name


def test_the_published_row_of_unseen_ids_is_the_mean_of_the_known_ones(dataset, tmp_path):
    trained(
        SingleWorker(tmp_path / "a"), written.config("train.epochs=1"), dataset, tmp_path / "out"
    )
    item = weights(tmp_path / "out")["embeddings.1.weight"]
    torch.testing.assert_close(item[1], item[2:].mean(dim=0))


# ---------------------------------------------------------------------------------------------
# Early stopping and the journal


def metrics(auc, logloss=0.5):
    return {"click": {"auc": auc, "logloss": logloss}, "like": {"auc": None, "logloss": 0.1}}


def test_early_stopping_waits_for_patience_and_keeps_the_best():
    journal, stopping, tasks = (
        Journal({}),
        EarlyStopping(patience=2, min_delta=0.01),
        written.schema().tasks,
    )
    kept = []
    for auc in (0.6, 0.7, 0.705, 0.65):
        journal.steps += 10
        kept.append(journal.evaluated(metrics(auc), tasks, stopping))
    assert kept == [True, True, False, False]
    assert journal.stopped_early
    assert (journal.best_step, journal.best_score) == (20, 0.7)


def test_a_metric_that_is_better_when_lower_counts_the_other_way():
    tasks, stopping = written.schema().tasks, EarlyStopping(metric="logloss")
    assert watched_score(metrics(0.5, 0.3), tasks, stopping) == pytest.approx(-0.2)
    assert watched_score(metrics(None), tasks, None) is None


def test_while_the_metric_is_not_defined_the_newest_is_best():
    journal, tasks = Journal({}), written.schema().tasks
    assert journal.evaluated(metrics(None), tasks, None)
    assert journal.evaluated(metrics(None), tasks, None)
    assert journal.evaluated(metrics(0.4), tasks, None)
    assert not journal.evaluated(metrics(None), tasks, None)


def test_a_run_that_stops_early_says_so_and_stays_stopped(dataset, tmp_path):
    config = written.config(
        "train.epochs=30", "train.early_stopping={metric: auc, patience: 1, min_delta: 0.5}"
    )
    first = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")
    assert first["stopped_early"]
    assert (first["steps"], first["best_step"]) == (26, 13)
    again = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")
    assert again["steps"] == 26


def test_a_metric_no_task_has_is_refused():
    with pytest.raises(
        ConfigError, match=r"train.early_stopping.metric must be .*auc.*found 'rmse'"
    ):
        check_watched(written.schema().tasks, EarlyStopping(metric="rmse"))


def test_the_journal_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    Journal({"config": "sha256:a"}).write(tmp_path)
    with pytest.raises(
        ConfigError, match="has config sha256:a, this run has sha256:b; give the run another"
    ):
        Journal({"config": "sha256:b"}).restore(tmp_path)
    path = tmp_path / "journal.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ConfigError, match=r"journal\.json is missing or damaged"):
        Journal({}).restore(tmp_path)


# ---------------------------------------------------------------------------------------------
# Damaged and strange states


@pytest.fixture
def finished(dataset, tmp_path):
    config = written.config("train.epochs=1")
    trained(SingleWorker(tmp_path / "state"), config, dataset, tmp_path / "out")
    return config


@pytest.mark.parametrize(
    "name", ["dense.safetensors", "tables.safetensors", "rows.safetensors", "optimizer.pt"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_training_state_is_named(name, damage, finished, dataset, tmp_path):
    path = SingleWorker(tmp_path / "state").latest_checkpoint() / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    expected = "is truncated or corrupt" if damage == "truncated" else "is missing"
    with pytest.raises(ConfigError, match=f"{name} {expected}"):
        trained(SingleWorker(tmp_path / "state"), finished, dataset, tmp_path / "out")


def test_a_damaged_or_missing_state_of_deepspeed_is_named(dataset, tmp_path):
    config = written.config("train.epochs=1", "train.strategy={type: deepspeed, zero_stage: 1}")
    trained(SingleWorker(tmp_path / "state"), config, dataset, tmp_path / "out")
    folder = SingleWorker(tmp_path / "state").latest_checkpoint() / "deepspeed"
    for path in folder.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        ConfigError, match=r"/deepspeed is damaged, or of another number of workers"
    ):
        trained(SingleWorker(tmp_path / "state"), config, dataset, tmp_path / "out")
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"there is no training state in .*/deepspeed"):
        trained(SingleWorker(tmp_path / "state"), config, dataset, tmp_path / "out")


def test_a_state_with_other_tables_is_refused(finished, dataset, tmp_path):
    newest = SingleWorker(tmp_path / "state").latest_checkpoint()
    shutil.copy(newest / "dense.safetensors", newest / "tables.safetensors")
    with pytest.raises(ConfigError, match="belongs to another model"):
        trained(SingleWorker(tmp_path / "state"), finished, dataset, tmp_path / "out")


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
    config = written.config("train.optimizer={type: adam, lr: 1e30}")
    with pytest.raises(ConfigError, match=r"must be finite, found .*lower train.optimizer.lr"):
        trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")


# ---------------------------------------------------------------------------------------------
# The checkpoint


@pytest.fixture
def run_directory(finished, dataset, tmp_path):
    shutil.copy(Path(dataset) / "schema.json", tmp_path / "out" / "schema.json")
    return tmp_path / "out"


def test_a_loaded_checkpoint_predicts_what_was_validated(run_directory, dataset):
    from infnet.data.loader import scan

    recommender, schema, config = checkpoint.load(run_directory)
    assert config.name == "written"
    assert schema == written.schema()
    (batch,) = scan(dataset, "valid", schema, 1000)
    predicted = recommender.predict(batch)["click"]
    weight, label = batch.weight, batch.labels[:, 0]
    loss = torch.nn.functional.binary_cross_entropy(predicted, label, reduction="none")
    found = json.loads((run_directory / "checkpoint" / "manifest.json").read_text())["info"][
        "metrics"
    ]
    assert ((loss * weight).sum() / weight.sum()).item() == pytest.approx(
        found["click"]["loss"], rel=1e-5
    )


@pytest.mark.parametrize("name", ["network.safetensors", "tables.safetensors"])
def test_a_truncated_checkpoint_is_named(name, run_directory):
    path = run_directory / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=f"{name} is truncated"):
        checkpoint.load(run_directory)


def test_a_corrupt_checkpoint_is_named(run_directory):
    path = run_directory / "checkpoint" / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match=r"network\.safetensors is damaged"):
        checkpoint.load(run_directory)


def test_the_schema_of_another_dataset_is_refused(run_directory):
    other = written.schema().model_copy(update={"encoder_digest": "sha256:other"})
    other.write(run_directory / "schema.json")
    with pytest.raises(ConfigError, match="it is the schema of another dataset; put back"):
        checkpoint.load(run_directory)


def test_a_newer_checkpoint_is_refused(run_directory):
    path = run_directory / "checkpoint" / "manifest.json"
    raw = json.loads(path.read_text()) | {"format_version": 99}
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="has format_version 99"):
        checkpoint.load(run_directory)


def test_weights_of_another_model_are_refused(run_directory):
    with pytest.raises(ConfigError, match="holds the weights of another model"):
        checkpoint._fill(
            torch.nn.Linear(2, 2), run_directory / "checkpoint" / "network.safetensors"
        )


def test_there_is_no_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint"):
        checkpoint.load(tmp_path)


def test_the_report_shows_curves_and_evaluations(dataset, tmp_path):
    config = written.config("rivals={floor: {type: floor}}")
    outcome = trained(SingleWorker(tmp_path / "a"), config, dataset, tmp_path / "out")
    rival = config.model_copy(update={"model": config.rivals["floor"]})
    other = trained(SingleWorker(tmp_path / "b"), rival, dataset, tmp_path / "floor")
    places = {"": str(tmp_path / "out"), "floor": str(tmp_path / "floor")}
    html = report(config, places, {"": outcome, "floor": other}).html()
    assert html.count("<svg") == 2
    assert f"{outcome['metrics']['click']['auc']:.4f}" in html
    assert "Validation metrics at each evaluation" in html
    assert "http" not in html.split("<body", 1)[1].replace("http://www.w3.org", "")
