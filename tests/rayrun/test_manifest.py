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


# --- Content ---------------------------------------------------------------------------------


def write_run(place: Path, *, weights: str = "1", wall_s: float = 1.0, data: str = "/a") -> Path:
    """An artifact with another one inside, one file of which it does not list."""
    for inner in (place / "checkpoint", place / "rivals/floor", place):
        inner.mkdir(parents=True, exist_ok=True)
        (inner / "weights").write_text(weights)
        (inner / "result.json").write_text(json.dumps({"wall_s": wall_s}))
        (inner / "config.yaml").write_text(f"inputs: {{data: {data}}}")
        manifest.write(
            inner,
            kind="test.run",
            format_version=1,
            config=Run(name=data),
            exclude=("rivals/*",),
        )
    return place


def test_wall_seconds_and_places_are_no_content(tmp_path):
    first = manifest.content_of(write_run(tmp_path / "a"))
    assert first == manifest.content_of(write_run(tmp_path / "b", wall_s=2.0, data="/b"))
    assert first != manifest.content_of(write_run(tmp_path / "c", weights="2"))


def test_an_artifact_inside_that_is_not_listed_is_content(tmp_path):
    place = write_run(tmp_path / "a")
    before, outer = manifest.content_of(place), manifest.inside(place)
    assert sorted(outer) == ["", "rivals/floor"]
    (place / "rivals/floor/weights").write_text("2")
    rewritten = place / "rivals/floor"
    manifest.write(rewritten, kind="test.run", format_version=1, config=Run(name="a"))
    assert manifest.content_of(place) != before
    assert manifest.inside(place)[""].content_digest == outer[""].content_digest


def test_a_setting_that_shows_in_no_file_is_no_content(tmp_path):
    digests = set()
    for lr in (0.1, 0.2):
        place = tmp_path / str(lr)
        place.mkdir()
        (place / "weights").write_text("1")
        manifest.write(place, kind="test.run", format_version=1, config=Run(name="a", lr=lr))
        digests.add(manifest.content_of(place))
    assert len(digests) == 1


def test_volatile_files_are_verified_all_the_same(tmp_path):
    place = write_run(tmp_path / "a")
    manifest.verify(place)
    (place / "result.json").write_text(json.dumps({"wall_s": 9.0}))
    with pytest.raises(ConfigError, match=r"result\.json is damaged"):
        manifest.verify(place)


def test_a_manifest_from_before_there_were_volatile_files_keeps_its_digest(artifact):
    raw = json.loads((artifact / "manifest.json").read_text())
    del raw["volatile"]
    (artifact / "manifest.json").write_text(json.dumps(raw))
    files = {name: entry["sha256"] for name, entry in raw["files"].items()}
    assert read(artifact).content_digest == digest_of(["test.dataset", 2, files])
