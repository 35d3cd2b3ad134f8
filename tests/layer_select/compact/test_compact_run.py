"""`layer-select compact` on a real trained decoder of twelve layers."""

import json

import pytest
import torch

from layer_select.cli import main
from layer_select.compact import run as compact_run
from layer_select.compact.origin import FILE, Origin
from layer_select.opened import open_inputs
from layer_select.plan import Plan
from layer_select.sources import open_model
from rayrun import manifest
from rayrun.config import ConfigError, apply_override, validate
from rayrun.metrics import Result
from rayrun.ray.worker import SingleWorker
from tests.layer_select.families import small_model

KEPT = (0, 3, 4, 11)


def plan_of(model, kept, folder, layers: int = 12, **other) -> str:
    digest = open_model(None, str(model)).digest
    Plan(
        model=digest,
        task="sha256:task",
        num_layers=layers,
        kept=kept,
        budget={"layers": len(kept)},
        strategy={"type": "by_hand"},
        **other,
    ).write(folder)
    return str(folder)


def with_settings(config, *settings):
    raw = config.to_dict()
    for setting in settings:
        raw = apply_override(raw, setting)
    return validate(type(config), raw, where="test")


@pytest.fixture(scope="module")
def config(tiny_config, tiny_model, tmp_path_factory):
    plan = plan_of(tiny_model, KEPT, tmp_path_factory.mktemp("plan"))
    return with_settings(tiny_config, f"inputs.model={tiny_model}", f"inputs.plan={plan}")


def command(config, folder, out, *settings) -> list[str]:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["compact", str(path), *sets, "--out", str(out)]


def fitted_alone(config, folder, out) -> None:
    """What an interrupted call leaves: maps that its workers found."""
    work = compact_run._open(config)
    threads = torch.get_num_threads()
    argument = {
        "config": config.to_dict(),
        "key": work.key,
        "kept": list(work.plan.kept),
        "task": open_inputs(config).task.digest,
        "infnet_data": "",
        "maps": f"{out}.compacting/maps.safetensors",
    }
    compact_run.on_worker(SingleWorker(folder / "worker"), argument)
    torch.set_num_threads(threads)


def test_a_call_goes_on_from_fitted_maps_and_writes_a_model_never_worse_on_calibration(
    config, tiny_model, tmp_path, capsys
):
    out = tmp_path / "out"
    fitted_alone(config, tmp_path, out)
    assert main(command(config, tmp_path, out)) == 0  # no worker is asked again
    assert not (tmp_path / "out.compacting").exists()
    result = Result.read(out)
    calibration = result.details["calibration"]
    assert calibration["repaired"]["loss"] <= calibration["naive"]["loss"]
    assert any(repair["used"] for repair in result.details["repairs"])
    assert [repair["gap"] for repair in result.details["repairs"]] == [[1, 2], [5, 6, 7, 8, 9, 10]]
    assert result.baselines.keys() == {"full", "naive"}
    assert result.metrics["next_item"].keys() >= {"loss", "ndcg@10", "mrr"}
    sizes = result.details["sizes"]
    assert sizes["layers"] == [12, 4]
    assert sizes["block_parameters"][1] * 3 == sizes["block_parameters"][0]
    tensors = (out / "model.safetensors").stat().st_size
    assert sizes["bytes"][1] < tensors < sizes["bytes"][1] + 10_000
    origin = Origin.read(out)
    assert origin.kept == KEPT
    assert origin.model == open_model(None, str(tiny_model)).digest
    assert manifest.read(out, kind="layer_select.student", format_version=1).info["kept"] == [*KEPT]
    # What the workers measured is what the written model does.
    written = with_settings(config, f"inputs.model={out}")
    opened = open_inputs(written)
    decoder = compact_run.decoder_of(
        opened.checkpoint,
        written.score.execution,
        dtype="float32",
        device=torch.device("cpu"),
        attention="sdpa",
    )
    found = compact_run.measure(
        decoder,
        opened.task.objective(decoder),
        opened.task.batches("test"),
        range(4),
        SingleWorker(tmp_path / "worker"),
    )
    assert found["loss"] == pytest.approx(result.metrics["next_item"]["loss"], abs=1e-6)
    assert "4 of 12 layers" in (out / "report.html").read_text()
    # The same call again finds it; a second stage tells of the layers of the first model.
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert main(command(config, tmp_path, out)) == 0
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    second = plan_of(out, (0, 2), tmp_path / "second", layers=4)
    settings = [f"inputs.model={out}", f"inputs.plan={second}", "compact.repair={type: none}"]
    assert main(command(config, tmp_path, tmp_path / "smaller", *settings)) == 0
    again = Origin.read(tmp_path / "smaller")
    assert again.kept == (0, 4)
    assert again.model == origin.model
    assert again.num_layers == 12
    assert [stage["verb"] for stage in again.stages] == ["compact", "compact"]
    assert again.repairs == origin.repairs
    capsys.readouterr()


@pytest.mark.ray
def test_two_workers_of_ray_write_the_model_that_one_worker_writes(config, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    fitted_alone(config, tmp_path, alone)
    assert main(command(config, tmp_path, alone)) == 0
    settings = ["compute.workers=2", "compute.cpus_per_worker=1"]
    assert main(command(config, tmp_path, two, *settings)) == 0
    one, other = Origin.read(alone), Origin.read(two)
    assert [r.used for r in one.repairs] == [r.used for r in other.repairs]
    for a, b in zip(one.repairs, other.repairs, strict=True):
        assert a.loss_after == pytest.approx(b.loss_after, abs=1e-9)
    for name in open_model(None, str(alone)).shapes:
        a, b = (open_model(None, str(place)).tensor(name) for place in (alone, two))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_without_repair_no_ray_starts_and_the_output_may_be_on_s3(config, tmp_path, bucket):
    import ray

    out = f"{bucket}/runs/small"
    settings = ["compact.repair={type: none}", "compact.dtype=bfloat16"]
    assert main(command(config, tmp_path, out, *settings)) == 0
    assert not ray.is_initialized()
    model = open_model(None, out)
    assert model.config.num_hidden_layers == 4
    assert {info.dtype for info in model.shapes.values()} == {torch.bfloat16}
    assert Origin.of(model).kept == KEPT
    assert Result.read(out).metrics == {}


def test_a_dry_run_tells_sizes_and_gaps(config, tmp_path, capsys):
    assert main([*command(config, tmp_path, tmp_path / "out"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "layers: 4 of 12 stay: [0, 3, 4, 11]; gaps: [[1, 2], [5, 6, 7, 8, 9, 10]]" in told
    assert "(-66.7%)" in told
    assert "passes of 48 calibration samples through a layer" in told
    late = plan_of(config.inputs.model, (2, 11), tmp_path / "late")
    settings = [f"inputs.plan={late}"]
    assert main([*command(config, tmp_path, tmp_path / "out", *settings), "--dry-run"]) == 0
    assert "layers 0 to 1 are removed before the first kept one" in capsys.readouterr().out


def test_bad_input_is_refused_before_anything_runs(config, tiny_model, tmp_path, capsys):
    other = tmp_path / "other"
    Plan(
        model="sha256:other",
        task="t",
        num_layers=12,
        kept=(0, 11),
        budget={"layers": 2},
        strategy={"type": "x"},
    ).write(other)
    wrong = plan_of(tiny_model, (0, 5), tmp_path / "wrong", layers=6)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in tiny_model.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-100])
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "letter.txt").write_text("Dear")
    for out, setting, message in (
        ("out", "inputs.plan=''", "compact needs a plan and none is given"),
        ("out", f"inputs.plan={tmp_path}/none", "there is no plan at"),
        ("out", f"inputs.plan={other}", "is a plan of another model: sha256:other"),
        ("out", f"inputs.plan={wrong}", "is a plan for 6 layers, the model has 12"),
        ("out", f"inputs.model={damaged}", "the file is cut short"),
        ("out", "score.execution={type: zero3}", "set whole or streamed"),
        ("out", "compact.repair={type: linear, ridge: 0.0}", "greater than 0"),
        ("stranger", "name=x", "is no earlier output"),
    ):
        arguments = command(config, tmp_path, tmp_path / out, setting)
        if setting.startswith("score.execution"):
            raw = with_settings(config, "score.methods=[{type: fisher}]")
            arguments = command(raw, tmp_path, tmp_path / out, setting)
        assert main(arguments) == 2, message
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_broken_rule_is_refused_unless_the_plan_was_made_without_it(config, tmp_path, capsys):
    gpt_oss = tmp_path / "gpt_oss"
    small_model("gpt_oss").save_pretrained(gpt_oss)
    settings = [f"inputs.model={gpt_oss}", "compact.repair={type: none}"]
    broken = plan_of(gpt_oss, (0, 2, 3), tmp_path / "broken", layers=6)
    arguments = command(config, tmp_path, tmp_path / "out", *settings, f"inputs.plan={broken}")
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "layer 2 would become layer 1" in told
    assert "select.portable: false" in told
    free = plan_of(gpt_oss, (0, 2, 3), tmp_path / "free", layers=6, portable=False)
    arguments = command(config, tmp_path, tmp_path / "out", *settings, f"inputs.plan={free}")
    assert main(arguments) == 0
    notes = Result.read(tmp_path / "out").details["notes"]
    assert any("only Hugging Face's code will run this model" in note for note in notes)


def test_a_family_that_cannot_be_repaired_is_refused_with_the_reason(tmp_path, config, capsys):
    gemma = tmp_path / "gemma"
    model = small_model("gemma2")
    model.resize_token_embeddings(480)
    model.save_pretrained(gemma)
    open_model(None, config.inputs.model).tokenizer().save_pretrained(str(gemma))
    plan = plan_of(gemma, (0, 1), tmp_path / "plan", layers=6)
    settings = [f"inputs.model={gemma}", f"inputs.plan={plan}"]
    assert main(command(config, tmp_path, tmp_path / "out", *settings)) == 2
    assert "norm after down_proj (post_feedforward_layernorm)" in capsys.readouterr().err


def test_workers_with_other_data_refuse(config, tmp_path):
    argument = {"config": config.to_dict(), "infnet_data": "", "task": "another", "kept": [0]}
    with pytest.raises(ConfigError, match="the task differs between the machines of the run"):
        compact_run.on_worker(SingleWorker(tmp_path), argument)


def test_a_compaction_file_that_is_damaged_newer_or_anothers_is_told(tiny_model, tmp_path):
    origin = Origin(model="sha256:m", num_layers=12, kept=(0, 11))
    origin.write(tmp_path)
    assert Origin.read(tmp_path) == origin
    assert Origin.read(tmp_path / "none") is None
    assert Origin.of(open_model(None, str(tiny_model))) is None
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"compaction.json is damaged .* compact the model again"):
        Origin.read(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**origin.to_dict(), "format_version": 2}))
    with pytest.raises(ConfigError, match=r"has format_version 2; this program .* reads up to 1"):
        Origin.read(tmp_path)
    for kept, message in (((), "at least one layer"), ((0, 12), r"must lie in 0\.\.11")):
        (tmp_path / FILE).write_text(json.dumps({**origin.to_dict(), "kept": kept}))
        with pytest.raises(ConfigError, match=message):
            Origin.read(tmp_path)
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    origin.write(tmp_path)
    with pytest.raises(ConfigError, match="names 2 layers, the model has 12"):
        Origin.of(open_model(None, str(tmp_path)))
