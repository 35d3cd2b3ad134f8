"""Two applications of one file on one Ray Serve: the scorer and the recommender beside each other,
one replaced while both are asked, and the end.

One server for all, in an environment that points to a Ray that is gone.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.processes import below
from rayrun import manifest
from rayrun.ray.compute import AttachedCompute
from rayrun.ray.session import session
from tests.infnet.serve.conftest import at_run, exported, trained_run  # noqa: F401 - fixtures
from tests.pipelines.tiny_bundles import next_version, recommender_bundle

ROOT = Path(__file__).parents[2]
ROUTES = {"scorer": "score", "recommender": "recommend"}
GONE = "127.0.0.1:1"
"""Where no Ray answers."""

FILE = """name: two
serve: {{port: 0}}
compute: {{type: local, num_cpus: 2}}
applications:
  scorer:
    program: infnet
    bundle: {scorer}
    set: {{serve.cpus_per_replica: 0.5}}
  recommender:
    program: layer-select
    bundle: {recommender}
    set: {{serve.cpus_per_replica: 0.5}}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def digest(bundle: Path) -> str:
    return manifest.content_of(str(bundle))


@dataclass
class Server:
    """`python -m pipelines serve FILE`, which answers."""

    file: Path
    child: "subprocess.Popen[str]"
    urls: dict[str, str]
    address: str
    bundles: dict[str, Path]
    """What answers now."""

    def replace(self, name: str, *sets: str) -> "subprocess.CompletedProcess[str]":
        """The command that the server prints for this."""
        compute = f"compute={{type: attached, address: '{self.address}'}}"
        words = [w for one in (compute, *sets) for w in ("--set", one)]
        command = [sys.executable, "-m", "pipelines", "serve", str(self.file), name, *words]
        out = self.file.parent / "replaced"
        return subprocess.run(
            [*command, "--out", str(out)],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def ask(self, name: str) -> dict:
        sample = json.loads((self.bundles[name] / "sample.json").read_bytes())["request"]
        request = urllib.request.Request(
            f"{self.urls[name]}/{ROUTES[name]}", data=json.dumps(sample).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@pytest.fixture(scope="module")
def bundles(exported, tmp_path_factory) -> dict[str, Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("recommender")
    return {"scorer": exported, "recommender": recommender_bundle(folder)}


@pytest.fixture(scope="module")
def file(bundles, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("two") / "two.yaml"
    place.write_text(FILE.format(**bundles))
    return place


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    """A short temporary directory: names of sockets end at 107 bytes."""
    folder = tempfile.mkdtemp(prefix="t", dir="/tmp")
    yield folder
    for number in below(folder):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(file, bundles, scratch) -> Iterator[Server]:
    out = file.parent / "records"
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "serve", str(file), "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": scratch, "RAY_ADDRESS": GONE},
        start_new_session=True,
    )
    assert child.stdout is not None
    try:
        lines = [child.stdout.readline() for _ in range(3)]
        urls = [line.split()[1] for line in lines[:2] if line.startswith("READY ")]
        assert len(urls) == 2, child.communicate()[1]
        assert lines[2].startswith("to replace one: RAY_AUTH_MODE=token python -m pipelines serve ")
        (address,) = re.findall(r"--set \"compute={type: attached, address: '(\S+)'}\"", lines[2])
        yield Server(file, child, dict(zip(ROUTES, urls, strict=True)), address, dict(bundles))
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def ray_of(server, monkeypatch) -> Iterator[Server]:
    """This process is attached to the server's Ray."""
    from ray._raylet import Config

    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # its token is the user's
    Config.initialize("")  # Ray reads the variable once per process
    with session(AttachedCompute(address=server.address)):
        yield server


def replicas(name: str) -> set[str]:
    """Names of the actors that are replicas of an application; each start has a name of its own."""
    import ray

    found = {a["name"] for a in ray.util.list_named_actors(all_namespaces=True)}
    return {actor for actor in found if actor.startswith(f"SERVE_REPLICA::{name}#")}


def actor_id(actor: str) -> str:
    import ray

    return ray.get_actor(actor, namespace="serve")._actor_id.hex()


@dataclass
class Seen:
    """What clients were told, by application: which model answered, or what went wrong."""

    told: dict[str, Counter] = field(default_factory=lambda: {n: Counter() for n in ROUTES})


@contextlib.contextmanager
def load(server: Server) -> Iterator[Seen]:
    """Two clients on each route, which ask all the time."""
    seen, end = Seen(), threading.Event()

    def client(name: str) -> None:
        while not end.is_set():
            try:
                seen.told[name][server.ask(name)["model"]] += 1
            except Exception as error:  # whatever a client may meet is what is counted
                seen.told[name][repr(error)] += 1

    clients = [threading.Thread(target=client, args=(name,)) for name in [*ROUTES] * 2]
    for one in clients:
        one.start()
    try:
        yield seen
    finally:
        end.set()
        for one in clients:
            one.join()


def test_both_answer_on_one_port_with_their_bundles(server):
    root = {url.rpartition("/")[0] for url in server.urls.values()}
    assert len(root) == 1
    for name, url in server.urls.items():
        assert url.endswith(f"/{name}")
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as response:
            assert json.load(response) == {"ready": True, "model": digest(server.bundles[name])}
        assert server.ask(name)["model"] == digest(server.bundles[name])
    with urllib.request.urlopen(f"{root.pop()}/-/healthz", timeout=10) as response:
        assert response.status == 200


@pytest.mark.parametrize(("name", "other"), [("scorer", "recommender"), ("recommender", "scorer")])
def test_one_is_replaced_under_load_and_neither_drops_a_request(ray_of, name, other, tmp_path):
    new = next_version(ray_of.bundles[name], tmp_path / "next")
    before = replicas(name)
    (beside,) = replicas(other)
    same = actor_id(beside)
    with load(ray_of) as seen:
        time.sleep(1)
        settings = f"{{serve.cpus_per_replica: 0.5, serve.live: {tmp_path}/live}}"
        done = ray_of.replace(
            name, f"applications.{name}.bundle={new}", f"applications.{name}.set={settings}"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"READY {ray_of.urls[name]}\n"
        until = time.monotonic() + 60
        while replicas(name) & before and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(1)
    assert len(replicas(name) - before) == 1
    assert not replicas(name) & before, "the old replica has ended"
    assert replicas(other) == {beside}
    assert actor_id(beside) == same
    assert set(seen.told[name]) == {digest(ray_of.bundles[name]), digest(new)}
    assert set(seen.told[other]) == {digest(ray_of.bundles[other])}
    assert digest(tmp_path / "live") == digest(new)
    ray_of.bundles[name] = new


def test_the_prefix_of_another_application_is_refused(ray_of):
    sets = ["applications.recommender.route_prefix=/scorer", "applications.scorer.route_prefix=/x"]
    done = ray_of.replace("recommender", *sets)
    assert done.returncode == 2
    assert "error: the application recommender does not go live: serve.route_prefix (/scorer) is that of the application 'scorer'" in done.stderr  # fmt: skip
    assert "Traceback" not in done.stderr
    assert ray_of.ask("recommender")["model"] == digest(ray_of.bundles["recommender"])


def test_prometheus_finds_the_counters_of_both(ray_of):
    import ray

    (node,) = ray.nodes()
    place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        "scorer": ["infnet_requests", "infnet_latency_ms_count", "infnet_candidates"],
        "recommender": ["layer_select_requests", "layer_select_latency_ms_count"],
    }
    until = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(place, timeout=10) as response:
            text = response.read().decode()
        missing = [
            (name, metric)
            for name, metrics in wanted.items()
            for metric in metrics
            if not re.search(
                rf'^ray_{metric}(_total)?{{.*application="{name}".*}} [1-9]', text, re.M
            )
        ]
        if not missing or time.monotonic() > until:
            break
        time.sleep(1)
    assert missing == [], re.findall(r"^ray_(?:infnet|layer_select).*$", text, re.M)


def test_ctrl_c_ends_both_and_leaves_nothing(server, scratch):
    os.killpg(server.child.pid, signal.SIGINT)
    said, err = server.child.communicate(timeout=90)
    assert server.child.returncode == 0, err
    assert "told to stop; answering what was asked before" in said
    assert err == ""
    until = time.monotonic() + 20
    while (left := below(scratch)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []
    assert [name for name in os.listdir(scratch) if not name.startswith("torch")] == []


def test_an_address_where_no_cluster_answers_is_refused(file, tmp_path, capsys):
    there = f"--set=compute={{type: attached, address: '{GONE}'}}"
    assert main(["serve", str(file), "scorer", there, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert f"error: the application scorer does not go live: compute.address ({GONE}): no Ray cluster answers" in said.err  # fmt: skip
    assert f"its log: {tmp_path / 'out' / 'scorer.log'}" in said.err
    assert said.out == ""
