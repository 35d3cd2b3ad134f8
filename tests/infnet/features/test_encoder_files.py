import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_log import fit, training_rows

from infnet.features.digests import table_digest
from infnet.features.encoder import Encoder
from rayrun.config import ConfigError


@pytest.fixture
def written(encoder: Encoder, tmp_path: Path) -> Path:
    encoder.write(tmp_path / "encoder")
    return tmp_path / "encoder"


def edit(directory: Path, **changes) -> None:
    path = directory / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_what_is_read(encoder, written, log, later):
    found = Encoder.read(written)
    assert found.digest == encoder.digest
    assert found.schema() == encoder.schema()
    raw = log.slice(training_rows(log).num_rows)
    assert found.encode(found.derive(raw)).equals(encoder.encode(later))


def test_the_look_ups_may_stay_on_disk(encoder, written, later):
    found = Encoder.read(written, lookups=False)
    assert found.encode(later).equals(encoder.encode(later))
    assert found.digest == encoder.digest
    with pytest.raises(ConfigError, match="needs its look-up table"):
        found.derive(later.drop_columns([c for c in later.column_names if c.startswith("__")]))
    with pytest.raises(ConfigError, match="stripped of its look-ups"):
        found.write(written.parent / "again")


def test_fitting_again_gives_the_same_digest(encoder, feature_set, log):
    assert fit(feature_set, training_rows(log)).digest == encoder.digest


def test_other_training_rows_give_another_digest(encoder, feature_set, log):
    fewer = training_rows(log).slice(0, 100)
    assert fit(feature_set, fewer).digest != encoder.digest


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no encoder at .*; run `infnet prepare` first"):
        Encoder.read(tmp_path)


def test_a_newer_format_is_refused(written):
    edit(written, format_version=2)
    with pytest.raises(ConfigError, match="has format_version 2, this program reads up to 1"):
        Encoder.read(written)


def test_damaged_json_is_refused(written):
    (written / "encoder.json").write_text('{"format_version": 1')
    with pytest.raises(
        ConfigError, match=r"encoder\.json is damaged .*; run `infnet prepare` again"
    ):
        Encoder.read(written)


def test_a_changed_state_is_noticed(written):
    edit(written, states={})
    with pytest.raises(ConfigError, match=r"encoder\.json was changed after it was written"):
        Encoder.read(written)


def test_a_changed_table_is_noticed(written):
    path = written / "vocabularies" / "item.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(
        ConfigError, match=r"item\.parquet is not the table that encoder\.json names"
    ):
        Encoder.read(written)


def test_a_truncated_table_is_named(written):
    path = written / "histories" / "clicks.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        ConfigError, match=r"clicks\.parquet is damaged .*; run `infnet prepare` again"
    ):
        Encoder.read(written)


def test_a_missing_table_is_named(written):
    (written / "statistics" / "item_click.parquet").unlink()
    with pytest.raises(ConfigError, match=r"item_click\.parquet is missing"):
        Encoder.read(written)


def test_digests_see_values_and_not_their_layout():
    table = pa.table({"a": ["x", None, "yz"], "l": [[1], None, [2, 3]], "b": [True, None, False]})
    digest = table_digest(table)
    assert table_digest(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == digest
    longer = pa.concat_tables([table, table])
    assert table_digest(longer.slice(3)) == digest
    for changed in (
        {"a": ["x", "", "yz"]},
        {"a": ["xy", None, "z"]},
        {"l": [[1], [], [2, 3]]},
        {"l": [[1], None, [3, 2]]},
        {"b": [True, False, False]},
    ):
        assert table_digest(pa.table({**table.to_pydict(), **changed})) != digest
    assert table_digest(table.rename_columns(["a", "l", "c"])) != digest


def test_states_are_part_of_the_digest(encoder):
    other = replace(encoder, states={**encoder.states, "number": {"shift": 0.0, "scale": 2.0}})
    assert other.content_digest() != encoder.digest
