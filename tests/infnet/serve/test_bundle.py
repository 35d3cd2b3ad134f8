"""A bundle answers as it was exported, and nothing that is damaged, newer or mixed up is opened."""

import gc
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from infnet.cli import main
from infnet.features.arrays import Arrays, SequenceArrays, to_arrays
from infnet.features.request import encode_request
from infnet.serve import bundle as served
from infnet.serve.bundle import Bundle, difference
from infnet.tasks import RegressionTask
from rayrun import manifest, storage
from rayrun.config import ConfigError


@pytest.fixture(scope="module")
def bundle(exported) -> Bundle:
    return Bundle.open(str(exported))


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def seal(place: Path, **changes: int) -> None:
    """Write the manifest anew, as if the content had been exported so."""
    raw = manifest.read_raw(str(place))
    manifest.write(
        str(place),
        **{"kind": raw["kind"], "format_version": raw["format_version"], **changes},
        config=raw["config"],
        exclude=served.NOT_DIGESTED,
    )


def test_it_reproduces_its_own_sample(bundle):
    bundle.check_sample()
    assert len(bundle.sample["answer"]) == len(bundle.sample["request"]["candidates"]) >= 4
    assert list(bundle.sample["answer"][0]) == list(bundle.schema.tasks)


def test_a_row_is_scored_alone_as_in_company(bundle):
    rows = encode_request(bundle.encoder, **bundle.sample["request"])
    together = bundle.score(rows)
    assert all(v.dtype == np.float32 and v.shape == (rows.num_rows,) for v in together.values())
    for at in range(rows.num_rows):
        alone = bundle.score(to_arrays(rows.slice(at, 1), bundle.schema))
        for task, values in alone.items():
            assert values == pytest.approx(together[task][at : at + 1], rel=1e-6)


def test_the_answer_depends_on_the_history(bundle):
    request = bundle.sample["request"]
    assert len(request["histories"]["clicks"]) > 1
    without = encode_request(bundle.encoder, **{**request, "histories": {}})
    answer = np.array([row["click"] for row in bundle.sample["answer"]])
    assert difference(bundle.score(without)["click"], answer).max() > 1e-3


@pytest.fixture
def one_history(bundle) -> Arrays:
    """Many rows that share the histories of the sample's first candidate."""
    rows = to_arrays(encode_request(bundle.encoder, **bundle.sample["request"]), bundle.schema)
    first = {
        name: SequenceArrays(each.ids[:1], each.ages[:1], each.lengths[:1])
        for name, each in rows.sequences.items()
    }
    again = np.arange(2 * served.ROWS_AT_ONCE + 3) % len(rows)
    return Arrays(ids=rows.ids[again], dense=rows.dense[again], sequences=first)


def test_one_history_of_all_rows_is_read_once_and_gives_what_copies_give(bundle, one_history):
    assert bundle.shares_histories
    shared, copies = bundle.score(one_history), bundle.score(one_history.per_row())
    for task, values in shared.items():
        assert values.shape == (len(one_history),)
        assert len(np.unique(values)) > 1
        assert difference(values, copies[task]).max() < 1e-6


def test_a_bundle_of_an_earlier_version_gets_a_history_for_each_row(bundle, copy, one_history):
    graph = onnx.load(copy / "model.onnx", load_external_data=False)
    for value in graph.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    onnx.save(graph, copy / "model.onnx")
    seal(copy)
    earlier = Bundle.open(str(copy))
    assert not earlier.shares_histories
    expected = bundle.score(one_history)
    for task, values in earlier.score(one_history).items():
        assert difference(values, expected[task]).max() < 1e-6


def test_no_rows_have_no_predictions(bundle):
    none = encode_request(bundle.encoder, **{**bundle.sample["request"], "candidates": []})
    assert {task: v.shape for task, v in bundle.score(none).items()} == {
        "click": (0,),
        "spend": (0,),
    }


def test_neither_torch_nor_ray_is_loaded_to_serve(exported):
    program = (
        "import sys\n"
        "from infnet.serve.bundle import Bundle\n"
        f"Bundle.open({str(exported)!r}).check_sample()\n"
        "print(sorted({'torch', 'ray', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "tables.safetensors",
        "schema.json",
        "sample.json",
        "encoder/encoder.json",
        "encoder/vocabularies/item.parquet",
    ],
)
def test_one_changed_byte_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} is damaged: its SHA-256 is not the manifest's"):
        Bundle.open(str(copy))


def test_a_missing_file_is_refused(copy):
    (copy / "tables.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"tables\.safetensors is missing, the manifest lists it"):
        Bundle.open(str(copy))


def test_how_it_was_made_is_no_part_of_the_digest(bundle, copy):
    for name in served.NOT_DIGESTED:
        (copy / name).write_text("changed")
    assert Bundle.open(str(copy)).digest == bundle.digest


def test_a_newer_format_is_refused(copy):
    seal(copy, format_version=served.FORMAT_VERSION + 1)
    with pytest.raises(ConfigError, match=r"has format_version 2, .* reads up to 1: install"):
        Bundle.open(str(copy))


def test_something_else_is_refused(trained_run):
    with pytest.raises(ConfigError, match="of kind 'infnet.run', 'infnet.bundle' is needed"):
        Bundle.open(str(trained_run))


def test_an_answer_that_is_not_reproduced_is_told(copy):
    sample = json.loads((copy / "sample.json").read_text())
    sample["answer"][2]["spend"] += 1e-3
    (copy / "sample.json").write_text(json.dumps(sample))
    seal(copy)
    opened = Bundle.open(str(copy))
    with pytest.raises(
        ConfigError, match=r"not reproduce its own sample: spend of candidates\[2\]"
    ):
        opened.check_sample()


def test_parts_of_two_models_are_refused(copy):
    schema = json.loads((copy / "schema.json").read_text())
    (copy / "schema.json").write_text(json.dumps({**schema, "encoder_digest": "sha256:other"}))
    seal(copy)
    with pytest.raises(ConfigError, match=r"belongs to sha256:other: they are of two models"):
        Bundle.open(str(copy))


def test_a_graph_that_cannot_be_loaded_is_told(copy):
    (copy / "model.onnx").write_bytes(b"no graph")
    seal(copy)
    with pytest.raises(ConfigError, match=r"model\.onnx cannot be loaded \(.*export again"):
        Bundle.open(str(copy))


def test_differences_are_absolute_below_one_and_relative_above():
    found, expected = np.array([0.5, 1e6 + 1, np.nan, 1.0]), np.array([0.4, 1e6, 1.0, np.inf])
    assert difference(found, expected) == pytest.approx([0.1, 1e-6, np.inf, np.inf])


def test_smoothed_amounts_are_compared_as_the_network_says_them():
    watch = RegressionTask(label="watch", target="smoothed")
    found, expected = np.array([99 + np.exp(5.0001), 50.1]), np.array([99 + np.exp(5.0), 50.0])
    assert difference(found, expected, watch) == pytest.approx([1e-4 / 105, 2e-3], rel=1e-3)
    assert difference(found, expected)[0] > 5e-5


# --- On S3 -----------------------------------------------------------------------------------


@pytest.fixture
def there(exported, bucket) -> str:
    storage.put(exported, f"{bucket}/bundle")
    return f"{bucket}/bundle"


def test_one_in_a_bucket_is_fetched_to_a_private_place_and_answers_as_on_disk(
    there, exported, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bundle = Bundle.open(there)
    bundle.check_sample()
    here = Bundle.open(str(exported))
    assert bundle.digest == here.digest
    assert bundle.sample == here.sample
    (place,) = tmp_path.glob("bundle-*/bundle")
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert sorted(storage.names(place)) == storage.names(there)
    del bundle
    gc.collect()
    assert list(tmp_path.glob("bundle-*/bundle")) == []
    given = ["serve", there, "--set", "serve.port=0", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert f"bundle: {there}" in said
    assert f"model: {here.digest}" in said


def test_a_damaged_and_a_half_uploaded_one_are_refused(there, exported, capsys, tmp_path):
    content = bytearray((exported / "tables.safetensors").read_bytes())
    content[-1] ^= 1
    storage.write_bytes(f"{there}/tables.safetensors", bytes(content))
    with pytest.raises(ConfigError, match="tables.safetensors is damaged: its SHA-256 is not"):
        Bundle.open(there)
    storage.remove(f"{there}/manifest.json")
    storage.write_bytes(f"{there}/.incomplete", b"")
    assert main(["serve", there, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"error: {there} is no finished artifact" in said
    assert "Traceback" not in said
