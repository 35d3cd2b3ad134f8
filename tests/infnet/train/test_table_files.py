"""Files of embedding tables: any number of workers reads what any other number wrote."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infnet.model.recommender import Recommender
from infnet.model.tables import Share
from infnet.schema import TableSpec
from infnet.train import checkpoint
from infnet.train.table_files import WHOLE, SavedTables, TableWriter, save, write_tensors
from rayrun.config import ConfigError
from tests.infnet.train import written_dataset

ROWS, WIDTH = 37, 3
SPLIT = {"item"}


@pytest.fixture
def table():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def written(directory, table, workers):
    """What `workers` workers write of a split table and one held whole."""
    directory.mkdir()
    for rank in range(workers):
        share = Share(rank, workers, frozenset(SPLIT))
        tensors = {"item": table[rank::workers], "user": table[:5], "steps": torch.tensor(7)}
        save(directory, "rows", tensors, share, SPLIT if workers > 1 else set())
    return directory


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("writers", [1, 2, 3, 5])
def test_every_row_comes_to_who_holds_it(writers, readers, table, tmp_path):
    saved = SavedTables(written(tmp_path / "state", table, writers), "rows")
    for rank in range(readers):
        share = Share(rank, readers, frozenset(SPLIT))
        part = torch.full((share.rows(ROWS), WIDTH), torch.nan)
        saved.fill("item", part, ROWS, share)
        assert torch.equal(part, table[rank::readers])
    whole = torch.empty(5, WIDTH)
    saved.fill("user", whole, 5, WHOLE)
    assert torch.equal(whole, table[:5])
    assert int(saved.whole["steps"]) == 7


def test_a_missing_part_is_told(table, tmp_path):
    state = written(tmp_path / "state", table, 3)
    (state / "rows.1-of-3.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"rows\.1-of-3\.safetensors is missing; .* not whole"):
        SavedTables(state, "rows")


def test_a_truncated_part_is_told(table, tmp_path):
    part = written(tmp_path / "state", table, 2) / "rows.1-of-2.safetensors"
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"rows\.1-of-2\.safetensors is truncated or corrupt"):
        SavedTables(part.parent, "rows")


def test_the_state_of_another_model_is_refused(table, tmp_path):
    saved = SavedTables(written(tmp_path / "state", table, 2), "rows")
    with pytest.raises(ConfigError, match=r"must have shape \[38, 3\], found \[37, 3\]"):
        saved.fill("item", torch.empty(19, 3), 38, Share(0, 2, frozenset(SPLIT)))
    with pytest.raises(ConfigError, match=r"must have shape \[37, 6\], found \[37, 3\]"):
        saved.fill("item", torch.empty(19, 6), ROWS, Share(0, 2, frozenset(SPLIT)))
    with pytest.raises(
        ConfigError, match=r"author in .*rows.safetensors .* found nothing: the state b"
    ):
        saved.fill("author", torch.empty(4, 3), 4, WHOLE)


def test_what_is_written_in_blocks_is_a_safetensors_file(table, tmp_path):
    tensors = {"a": table, "n": torch.tensor(3), "none": table[:0]}
    writer = TableWriter(
        tmp_path / "blocks", {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}
    )
    for tensor in tensors.values():
        writer.write(tensor.split(10) if tensor.ndim else [tensor])
    writer.close()
    found = load_file(tmp_path / "blocks")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    write_tensors(tmp_path / "at_once", tensors)
    assert (tmp_path / "at_once").read_bytes() == (tmp_path / "blocks").read_bytes()


def anonymous():
    """Bytes that this process holds and that are in no file."""
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_checkpoint_is_read_without_holding_its_tables(tmp_path):
    """64 MB of a table stay on disk; rows that are looked up are read."""
    rows, config, small = 2_000_000, written_dataset.config(), written_dataset.schema()
    large = {**small.tables, "user": TableSpec(rows=rows, dim=8)}
    shapes = {
        f"embeddings.{n}.weight": (torch.float32, (spec.rows, spec.dim))
        for n, spec in enumerate(large.values())
    }
    writer = TableWriter(tmp_path / "tables", shapes)
    for _, (count, width) in shapes.values():
        writer.write(
            torch.full((some, width), 0.5) for some in [1000] * (count // 1000) + [count % 1000]
        )
    writer.close()
    schema = small.model_copy(update={"tables": large})
    schema.write(tmp_path / "schema.json")
    checkpoint.write(
        str(tmp_path / "checkpoint"),
        config=config,
        schema=schema,
        network=Recommender(config.model, small).network.state_dict(),
        tables=tmp_path / "tables",
        info={},
    )
    before = anonymous()
    recommender, _, _ = checkpoint.load(tmp_path)
    found = recommender.tables.table("user")(torch.tensor([1, rows - 1]))
    assert torch.equal(found, torch.full((2, 8), 0.5))
    assert anonymous() - before < 16 << 20
