import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayrun import __version__, manifest, storage
from rayrun.config import Config, ConfigError, digest_of


class Run(Config):
    name: str
    lr: float = 0.1


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A written dataset of two files."""
    place = tmp_path / "art"
    (place / "train").mkdir(parents=True)
    (place / "train/part-0.parquet").write_bytes(b"0123456789")
    (place / "schema.json").write_text("{}")
    manifest.write(
        place,
        kind="test.dataset",
        format_version=2,
        config=Run(name="a"),
        inputs={"data": "sha256:1"},
        info={"rows": 10},
    )
    return place


def read(uri, **changes):
    return manifest.read(uri, **{"kind": "test.dataset", "format_version": 2, **changes})


def edit(artifact: Path, **changes: object) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_manifest_tells_where_the_artifact_came_from(artifact):
    found = read(artifact)
    assert found.config == {"name": "a", "lr": 0.1}
    assert found.config_digest == Run(name="b").digest()
    assert found.inputs == {"data": "sha256:1"}
    assert found.info == {"rows": 10}
    assert found.versions["infnet-ray"] == __version__
    assert {"python", "torch", "ray", "pyarrow"} <= found.versions.keys()
    assert found.created.endswith("+00:00")
    assert found.files["train/part-0.parquet"].bytes == 10
    assert sorted(found.files) == ["config.yaml", "schema.json", "train/part-0.parquet"]


def test_the_resolved_config_stands_beside_it(artifact):
    from rayrun.config import load

    assert load(Run, artifact / "config.yaml") == Run(name="a")


def test_the_commit_is_that_of_the_checkout():
    root = Path(manifest.__file__).parent.parent
    if not (root / ".git").exists():
        assert manifest.git_commit() == ""
        return
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    manifest.git_commit.cache_clear()
    assert manifest.git_commit().rstrip("+") == head.stdout.strip()


def test_an_excluded_file_is_no_part_of_the_artifact(artifact):
    (artifact / "ray").mkdir()
    (artifact / "ray/log").write_text("x")
    found = manifest.write(
        artifact, kind="k.k", format_version=1, config={"a": 1}, exclude=("ray/*",)
    )
    assert "ray/log" not in found.files
    assert found.config_digest == digest_of({"a": 1})


def test_equal_files_give_an_equal_content_digest(artifact):
    first = read(artifact).content_digest
    manifest.write(artifact, kind="test.dataset", format_version=2, config=Run(name="other"))
    assert read(artifact).content_digest == first
    (artifact / "schema.json").write_text("{ }")
    manifest.write(artifact, kind="test.dataset", format_version=2, config=Run(name="other"))
    assert read(artifact).content_digest != first


def test_another_kind_is_refused(artifact):
    with pytest.raises(
        ConfigError, match=r"is an artifact of kind 'test.dataset', 'test.run' is needed"
    ):
        read(artifact, kind="test.run")


def test_a_newer_format_names_the_version_it_needs(artifact):
    edit(artifact, format_version=3, versions={"infnet-ray": "7.1.0"})
    with pytest.raises(
        ConfigError,
        match=rf"has format_version 3, written by infnet-ray 7.1.0; this program \({__version__}\) reads up to 2: install infnet-ray>=7.1.0",
    ):
        read(artifact)


def test_an_older_format_is_migrated_step_by_step(artifact):
    edit(artifact, format_version=0, info={"n": 1})
    steps = {
        0: lambda raw: raw | {"info": {"rows": raw["info"]["n"]}},
        1: lambda raw: raw | {"info": {"rows": raw["info"]["rows"] * 2}},
    }
    found = read(artifact, migrations=steps)
    assert (found.format_version, found.info) == (2, {"rows": 2})


def test_an_older_format_without_a_migration_is_refused(artifact):
    edit(artifact, format_version=1)
    with pytest.raises(
        ConfigError, match="has format_version 1, which this program .* no longer reads"
    ):
        read(artifact)


@pytest.mark.parametrize("version", ["2", None, True, 1.5])
def test_a_format_version_is_a_whole_number(artifact, version):
    edit(artifact, format_version=version)
    with pytest.raises(ConfigError, match="format_version must be a whole number, found"):
        read(artifact)


def test_an_unfinished_artifact_is_told_from_a_missing_one(artifact, tmp_path):
    (artifact / "manifest.json").unlink()
    with pytest.raises(
        ConfigError, match=r"art is no finished artifact \(there is no manifest.json\)"
    ):
        read(artifact)
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "test.dataset"', "\x00"])
def test_a_damaged_manifest_is_named(artifact, text):
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"art/manifest.json is damaged"):
        read(artifact)


def test_an_unknown_key_of_a_manifest_is_named(artifact):
    edit(artifact, extra=1)
    with pytest.raises(ConfigError, match="extra: there is no such key"):
        read(artifact)


def test_verifying_finds_nothing_in_a_whole_artifact_here_or_on_s3(artifact, bucket):
    manifest.verify(artifact)
    storage.put(artifact, bucket + "/art")
    manifest.verify(bucket + "/art")
    assert read(bucket + "/art") == read(artifact)
    storage.write_bytes(bucket + "/art/schema.json", b"[]")
    with pytest.raises(ConfigError, match=r"art/schema.json is damaged: its SHA-256"):
        manifest.verify(bucket + "/art")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "part-0.parquet is missing, the manifest lists it"),
        (
            lambda p: p.write_bytes(b"01234"),
            "part-0.parquet is truncated: it has 5 bytes, the manifest says 10",
        ),
        (lambda p: p.write_bytes(b"0" * 12), "part-0.parquet is damaged: it has 12 bytes"),
        (lambda p: p.write_bytes(b"0123456780"), "part-0.parquet is damaged: its SHA-256"),
    ],
)
def test_verifying_names_the_bad_file_and_how_it_differs(artifact, damage, message):
    damage(artifact / "train/part-0.parquet")
    with pytest.raises(ConfigError, match=message):
        manifest.verify(artifact)


def test_reading_a_manifest_imports_neither_torch_nor_ray():
    code = "import sys, rayrun.manifest as m; m.versions(); sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
