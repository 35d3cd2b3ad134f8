"""Bad input, through the console entry: outputs that are damaged, mixed up or newer.

Each test is one line of the list that the product promises; run with `-rP` to read the messages.
"""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from .bad_input import damaged
from .console import SMOKE, contents

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.ray
def test_a_corrupt_parquet_shard(refused, data, run, tmp_path):
    name = "train/part-00000.parquet"
    at_rest = damaged(data, tmp_path / "data", name)
    says = [f"{at_rest}/{name}", "damaged", "SHA-256", "make the artifact again"]
    refused("train", SMOKE, "--set", f"inputs.data={at_rest}", says=says)

    name = "test/part-00000.parquet"
    at_rest = damaged(data, tmp_path / "cut", name, cut=1000)
    says = [f"{at_rest}/{name}", "truncated", "bytes, the manifest says"]
    refused("evaluate", run, "--set", f"inputs.data={at_rest}", says=says)


@pytest.mark.ray
@pytest.mark.parametrize("cut", [0, 1000])
def test_a_corrupt_parquet_log(refused, ray_session, log, tmp_path, cut):
    (tmp_path / "whole").mkdir()
    file = tmp_path / "whole" / "log.parquet"
    pq.write_table(log, file, write_page_checksum=True)
    users = pq.read_metadata(file).row_group(0).column(0)
    inside = users.data_page_offset + users.total_compressed_size // 2
    folder = damaged(file.parent, tmp_path / "log", file.name, cut=cut, at=inside)
    source = f"data.source={{path: {folder}, columns: {{user: user_id, item: video_id, time: {{column: time_ms, unit: ms}}}}}}"
    refused("prepare", SMOKE, "--set", source, says=[f"{folder}/log.parquet"])


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
@pytest.mark.parametrize("name", ["network.safetensors", "tables.safetensors"])
def test_a_truncated_checkpoint(refused, run, test_rows, tmp_path, verb, name):
    broken = damaged(run, tmp_path / "broken", f"checkpoint/{name}", cut=100)
    says = [f"{broken}/checkpoint/{name}", "truncated", "bytes, the manifest says", "again"]
    refused(verb, broken, "--data", test_rows, says=says)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("rivals/floor/checkpoint/network.safetensors", "truncated"),
        ("checkpoint/manifest.json", "damaged"),
        ("manifest.json", "damaged"),
        ("schema.json", "damaged"),
        ("encoder/encoder.json", "damaged"),
        ("encoder/vocabularies/user.parquet", ""),
        ("encoder/statistics/user_click_rate.parquet", ""),
    ],
)
def test_a_truncated_file_of_a_run(refused, run, test_rows, tmp_path, file, says):
    broken = damaged(run, tmp_path / "broken", file, cut=10)
    refused("evaluate", broken, "--data", test_rows, says=[f"{broken}/{file}", says, "again"])


@pytest.mark.ray
def test_the_schema_of_another_dataset(refused, data, other_data, run, test_rows, tmp_path):
    says = [f"{other_data} was prepared with encoder", "schema of another dataset", "inputs.data"]
    refused("evaluate", run, "--set", f"inputs.data={other_data}", says=says)

    same = tmp_path / "same"
    shutil.copytree(run, same)
    before = contents(same)
    says = [f"{same} holds a run on the data with digest", "inputs.data", "choose another --out"]
    refused("train", SMOKE, "--set", f"inputs.data={other_data}", says=says, out=same)
    assert contents(same) == before

    mixed = tmp_path / "schema"
    shutil.copytree(run, mixed)
    shutil.copy(other_data / "schema.json", mixed)
    says = [f"checkpoint in {mixed}", f"{mixed}/schema.json", "schema of another dataset", "again"]
    refused("evaluate", mixed, says=says)

    mixed = tmp_path / "encoder"
    shutil.copytree(run, mixed)
    shutil.rmtree(mixed / "encoder")
    shutil.copytree(other_data / "encoder", mixed / "encoder")
    for verb in ("evaluate", "predict"):
        says = [str(mixed), "encoder", "another dataset"]
        refused(verb, mixed, "--data", test_rows, says=says)


NEWER = [
    ("data", "manifest.json", "train"),
    ("data", "schema.json", "train"),
    ("data", "manifest.json", "evaluate"),
    ("run", "manifest.json", "evaluate"),
    ("run", "manifest.json", "predict"),
    ("run", "checkpoint/manifest.json", "predict"),
    ("run", "schema.json", "evaluate"),
    ("run", "encoder/encoder.json", "predict"),
    ("run", "rivals/floor/checkpoint/manifest.json", "evaluate"),
    ("run", "manifest.json", "train"),
]


@pytest.mark.ray
@pytest.mark.parametrize(("what", "file", "verb"), NEWER)
def test_a_newer_format_version(refused, data, run, test_rows, tmp_path, what, file, verb):
    newer = tmp_path / "newer"
    shutil.copytree({"data": data, "run": run}[what], newer)
    content = json.loads((newer / file).read_text())
    content["format_version"] = 2
    if "versions" in content:
        content["versions"]["infnet-ray"] = "0.9.0"
    (newer / file).write_text(json.dumps(content))
    arguments = {
        ("data", "train"): ("train", SMOKE, "--set", f"inputs.data={newer}"),
        ("data", "evaluate"): ("evaluate", run, "--set", f"inputs.data={newer}"),
        ("run", "evaluate"): ("evaluate", newer),
        ("run", "predict"): ("predict", newer, "--data", test_rows),
        ("run", "train"): ("train", SMOKE, "--set", f"inputs.data={data}"),
    }[what, verb]
    before = contents(newer)
    out = newer if (what, verb) == ("run", "train") else ""
    message = refused(*arguments, says=[str(newer), "format_version 2", "reads up to 1"], out=out)
    assert ("infnet-ray>=0.9.0" if "versions" in content else "upgrade infnet-ray") in message
    assert contents(newer) == before
