"""Large tables are looked up beside the graph: the same scores, and a bound on what stays in memory."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from infnet.serve import bundle as served
from infnet.serve.bundle import Bundle
from infnet.serve.mapped import MappedTables
from infnet.serve.onnx_graph import stored_tensors
from rayrun import manifest
from rayrun.config import ConfigError
from tests.infnet.serve.wide_rows import LARGE, anywhere

TAG = "embeddings.2.weight"
LIMIT = 8 << 20


@pytest.fixture(scope="module")
def large(exported, tmp_path_factory):
    """The bundle as it would be had its tags many more buckets; the first rows are the same."""
    place = tmp_path_factory.mktemp("large") / "bundle"
    shutil.copytree(exported, place)
    tables = load_file(place / "tables.safetensors")
    more = torch.randn(LARGE - len(tables[TAG]), 8, generator=torch.Generator().manual_seed(0))
    tables[TAG] = torch.cat([tables[TAG], more])
    save_file({name: tensor.clone() for name, tensor in tables.items()}, place / "tables.new")
    (place / "tables.new").rename(place / "tables.safetensors")
    stored = stored_tensors(place / "tables.safetensors")
    model = onnx.load(place / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if (key := tensor.name.removeprefix("tables.")) in stored:
            tensor.dims[:] = stored[key].shape
            for entry in tensor.external_data:
                if entry.key in ("offset", "length"):
                    entry.value = str(getattr(stored[key], entry.key))
    onnx.save(model, place / "model.onnx")
    schema = json.loads((place / "schema.json").read_text())
    schema["tables"]["tag"]["rows"] = LARGE
    (place / "schema.json").write_text(json.dumps(schema))
    raw = manifest.read_raw(str(place))
    given = {key: raw[key] for key in ("kind", "format_version", "config")}
    manifest.write(str(place), **given, exclude=served.NOT_DIGESTED)
    return place


def test_scores_are_those_of_the_graph(large):
    graph = Bundle.open(str(large))
    beside = Bundle.open(str(large), map_from=1 << 20, resident=LIMIT)
    beside.check_sample()
    assert [i for i in beside._inputs if i.startswith("tables.")] == [f"tables.{TAG}"]
    for rows in (anywhere(graph, 300, seed=1), anywhere(graph, 40, seed=2).per_row()):
        before = {name: each.ids.copy() for name, each in rows.sequences.items()}
        expected, found = graph.score(rows), beside.score(rows)
        for task, values in expected.items():
            np.testing.assert_allclose(found[task], values, rtol=0, atol=1e-6)
            assert len(np.unique(values)) > 10
        assert all((rows.sequences[name].ids == ids).all() for name, ids in before.items())


def test_all_tables_may_be_beside_the_graph_and_none(large, exported):
    for map_from, count in ((1, 3), (1 << 40, 0)):
        bundle = Bundle.open(str(exported), map_from=map_from)
        bundle.check_sample()
        assert sum(name.startswith("tables.") for name in bundle._inputs) == count


PROGRAM = """
import sys
from pathlib import Path
from infnet.serve.bundle import Bundle
from tests.infnet.serve.wide_rows import anywhere

def resident():
    said = Path("/proc/self/status").read_text()
    return 1024 * int(said.split("RssFile:")[1].split()[0])

place, limit = sys.argv[1:]
how = {"map_from": 1 << 20, "resident": int(limit)} if int(limit) else {}
bundle = Bundle.open(place, **how)
bundle.check_sample()
before, most = resident(), 0
for seed in range(10):
    bundle.score(anywhere(bundle, 1000, seed))
    most = max(most, resident() - before)
print(most)
"""


def grown(place, limit):
    """Most bytes of files that scoring 10,000 rows leaves in a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place), str(limit)],
        capture_output=True,
        text=True,
        cwd=".",
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_stays_below_the_limit_where_the_graph_would_hold_every_page_it_read(large):
    """80,000 rows of 32 bytes, spread over 64 MB: nearly all of its 15,625 pages are read."""
    page_slack = (
        4 << 20
    )  # pages that a call reads before it gives them back: 128 rows, 16 pages each
    assert grown(large, 0) > 50 << 20
    assert grown(large, LIMIT) < LIMIT + page_slack


def test_a_graph_that_cannot_be_read_is_told(exported, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    schema = Bundle.open(str(exported)).schema
    with pytest.raises(ConfigError, match=r"model\.onnx cannot be loaded \(.*export again"):
        MappedTables(tmp_path / "model.onnx", schema, at_least=1, resident=1)
