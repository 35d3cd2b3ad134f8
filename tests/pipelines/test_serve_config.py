"""The file of `python -m pipelines serve`: what is refused, before anything starts."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infnet.config import InfnetConfig
from pipelines.__main__ import main
from pipelines.processes import below
from rayrun import manifest
from rayrun.config import ConfigError, load
from rayrun.ray.applications import Applications, load_applications, options_of, room_for
from rayrun.ray.compute import LocalCompute
from rayrun.ray.serve_options import ServeOptions
from rayrun.ray.serve_verbs import Service, _record_live

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "serve" / "side_by_side.yaml"
SMOKE = ROOT / "configs" / "infnet" / "smoke.yaml"
NOBODY = 65534


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A directory with what names a bundle of each program; neither is opened by these tests."""
    monkeypatch.chdir(tmp_path)
    config = load(InfnetConfig, SMOKE, ["serve.replicas=3", "serve.live=/live"])
    for name, kind in (("scorer", "infnet.bundle"), ("recommender", "layer_select.bundle")):
        (tmp_path / name).mkdir()
        manifest.write(str(tmp_path / name), kind=kind, format_version=1, config=config)
        (tmp_path / name / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "two.yaml").write_text(
        "name: two\n"
        "serve: {port: 0}\n"
        "applications:\n"
        "  scorer: {program: infnet, bundle: scorer}\n"
        "  recommender: {program: layer-select, bundle: recommender}\n"
    )
    return tmp_path


def refused(capsys, place, *arguments: str) -> str:
    """The one error of a command that has done nothing."""
    before = set(place.rglob("*"))
    assert main(["serve", "two.yaml", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    assert set(place.rglob("*")) == before
    return said.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("applications.scorer.program=infnt", "applications.scorer.program: Input should be 'infnet' or 'layer-select'; found 'infnt'"),
        ("applications.scorer.route_prefix=/recommender", "applications.recommender.route_prefix must be another one than that of scorer, found '/recommender' for both"),
        ("applications.scorer.route_prefix=scorer", "applications.scorer.route_prefix: it must begin with / and not end with one, as /scorer does; found 'scorer'"),
        ("applications.scorer.route_prefix=/scorer/", "must begin with / and not end with one"),
        ("applications.scorer.bundl=x", "applications.scorer.bundl: there is no such key; did you mean 'bundle'?"),
        ("applications.scorer.set.serve={port: 1}", "applications.scorer.set: name one key of serve, as serve.replicas: 2"),
        ("applications={}", "applications: "),
        ("applications={'a b': {program: infnet, bundle: scorer}}", "the name of an application is of letters, digits, - and _"),
        ("applications.scorer.bundle=recommender", "applications.scorer.bundle (recommender): must be a bundle of infnet (kind 'infnet.bundle'), it is a bundle of layer-select"),
        ("applications.scorer.bundle=nowhere", "applications.scorer.bundle (nowhere): there is no bundle. `make run` leaves there what it puts live; or name another: --set applications.scorer.bundle=DIR"),
        ("compute={type: local, num_cpus: 1}", "the replicas of all applications need 6 CPUs, compute.num_cpus is 1"),
        ("serve.port=70000", "serve.port: "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_is_one_readable_error(override, says, place, capsys):
    assert says in refused(capsys, place, "--set", override)


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("serve.port", "serve.port of this file"),
        ("serve.route_prefix", "applications.scorer.route_prefix of this file"),
        ("inputs.bundle", "applications.scorer.bundle of this file"),
        ("compute.address", "compute of this file"),
    ],
)
def test_what_the_file_says_in_one_place_is_not_said_in_another(key, instead, place):
    text = (place / "two.yaml").read_text()
    line = "{program: infnet, bundle: scorer}"
    assert line in text
    (place / "two.yaml").write_text(text.replace(line, f"{line[:-1]}, set: {{{key}: 1}}}}"))
    with pytest.raises(ConfigError, match=rf"set: {key} is said by {instead}; set it there"):
        load_applications("two.yaml")


def test_a_name_that_stands_twice_is_refused(place, capsys):
    with (place / "two.yaml").open("a") as stream:
        stream.write("  scorer: {program: infnet, bundle: other}\n")
    assert "scorer" in refused(capsys, place)


def test_a_file_that_is_not_there_and_one_that_is_no_text(place, capsys):
    (place / "two.yaml").write_bytes(b"\xff\xfe")
    assert "two.yaml is not UTF-8 text; a YAML file is needed" in refused(capsys, place)
    (place / "two.yaml").unlink()
    assert "two.yaml" in refused(capsys, place)


def test_an_application_that_it_does_not_have_is_refused(place, capsys):
    said = refused(capsys, place, "scorre")
    assert "two.yaml has the applications scorer, recommender, found scorre" in said


def test_records_that_cannot_be_written_are_told(place, capsys):
    said = refused(capsys, place, "--out", "/dev/null/x", "--set", "compute={type: local}")
    assert "--out /dev/null/x cannot be written" in said


def test_a_taken_port_is_told_and_nothing_runs(place, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (place / "runs/two/serve").mkdir(parents=True)
        said = refused(capsys, place, "--set", f"serve.port={port}")
    assert f"serve.port ({port}) is taken on 127.0.0.1" in said


def test_before_make_run_has_put_something_live_the_shipped_file_says_what_to_do(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", str(SHIPPED)]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    for name in ("scorer", "recommender"):
        assert f"applications.{name}.bundle (" in said
        assert f"`make run` leaves there what it puts live; or name another: --set applications.{name}.bundle=DIR" in said  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_file_serves_below_scorer_and_recommender():
    config = load_applications(str(SHIPPED))
    assert {n: config.prefix_of(n) for n in config.applications} == {
        "scorer": "/scorer",
        "recommender": "/recommender",
    }


def test_an_application_is_deployed_with_its_own_settings_and_those_of_the_file(place):
    config = load_applications("two.yaml", ["applications.scorer.set={serve.replicas: 2}"])
    assert isinstance(config, Applications)
    assert config.sets_of("scorer") == [
        'serve.live=""',
        "serve.replicas=2",
        'serve.host="127.0.0.1"',
        "serve.port=0",
        'serve.application="scorer"',
        'serve.route_prefix="/scorer"',
    ]
    options = options_of(config, "scorer")
    assert (options.replicas, options.live, options.port) == (2, "", 0)


def test_ray_counts_on_cpus_for_replacements_too():
    options = [ServeOptions(replicas=40), ServeOptions(replicas=1, cpus_per_replica=0.5)]
    assert room_for(LocalCompute(), options).num_cpus == 81
    assert room_for(LocalCompute(num_cpus=41), options).num_cpus == 41


def test_a_bundle_that_is_served_from_where_it_is_live_is_not_copied_onto_itself(place):
    def service(bundle: Path) -> Service:
        return Service("infnet", name="a", route="/score", bundle=str(bundle), digest="", app=dict)

    live = place / "scorer"
    before = live.stat().st_ino
    _record_live(service(live), "scorer")
    assert live.stat().st_ino == before
    _record_live(service(place / "recommender"), "scorer")
    assert live.stat().st_ino != before
    assert manifest.read_raw(str(live))["kind"] == "layer_select.bundle"


# ---------------------------------------------------------------------------------------------
# The Ray of somebody else


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A temporary directory in which another user's Ray has left its own, closed to us.

    Root may enter everything, so for root it only belongs to another user.
    """
    folder = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))
    left = folder / "ray"
    (left / "session_latest").mkdir(parents=True)
    (left / "ray_current_cluster").write_text("127.0.0.1:1")
    if os.geteuid() == 0:
        for place in (left / "ray_current_cluster", left / "session_latest", left):
            os.chown(place, NOBODY, NOBODY)
    left.chmod(0o700 if os.geteuid() == 0 else 0o000)
    yield folder
    left.chmod(0o700)
    for number in below(str(folder)):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, 9)
    shutil.rmtree(folder, ignore_errors=True)


STARTS = """
from rayrun.ray.compute import LocalCompute
from rayrun.ray.session import session
with session(LocalCompute(num_cpus=1, object_store_bytes=100_000_000)):
    import ray
    print(ray.get(ray.remote(lambda: ray.get_runtime_context().gcs_address).remote()))
"""


@pytest.mark.ray
def test_a_local_ray_is_our_own_beside_a_dead_one_and_what_another_user_left(foreign):
    done = subprocess.run(
        [sys.executable, "-c", STARTS],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(foreign), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    address = done.stdout.strip()
    assert address
    assert address != "127.0.0.1:1"
    assert below(str(foreign)) == []
    assert os.listdir(foreign) == ["ray"], "our own Ray leaves nothing"
    (foreign / "ray").chmod(0o700)
    assert (foreign / "ray" / "ray_current_cluster").read_text() == "127.0.0.1:1"
    assert sorted(os.listdir(foreign / "ray")) == ["ray_current_cluster", "session_latest"]
