"""An application on a port: who listens, what a failed start says, replacement without a gap."""

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray.cloudpickle

from rayrun.config import ConfigError
from rayrun.ray import ingress, serve
from rayrun.ray.compute import AttachedCompute, LocalCompute
from rayrun.ray.http import as_json, path_of, respond
from rayrun.ray.private_haproxy import keep_private
from rayrun.ray.serve_options import ServeOptions
from rayrun.ray.take_down import take_down
from tests.rayrun.ray.test_take_down import records

OPTIONS = ServeOptions(port=0, start_timeout_s=60, cpus_per_replica=0.5)
SMALL = LocalCompute(num_cpus=2, object_store_bytes=200_000_000)


class Named:
    """Says its name at /healthz; starts after a while, or not at all."""

    def __init__(self, name, fails="", takes_s=0.0):
        time.sleep(takes_s)
        if fails:
            raise ConfigError(fails)
        self.name = name

    async def check_health(self):
        pass

    async def handle(self, scope, receive, send):
        found = path_of(scope) == "/healthz"
        body = as_json({"ready": True, "model": self.name})
        await respond(send, 200 if found else 404, body)


def named(*arguments, options=OPTIONS):
    return serve.application(Named, options, *arguments)


@pytest.fixture(scope="module")
def serving():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        folders = []
        made = ingress.tempfile.mkdtemp

        def remembered(*arguments, **keywords):
            folders.append(made(*arguments, **keywords))
            return folders[-1]

        patch.setattr(ingress.tempfile, "mkdtemp", remembered)
        with serve.serving(SMALL, OPTIONS):
            yield Path(next(f for f in folders if Path(f).name.startswith("h")))
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert haproxies(folders[0]) == []
    assert not any(Path(folder).exists() for folder in folders)


@pytest.fixture(scope="module")
def url(serving):
    """An application that is live throughout; tests replace it by one of the same name."""
    return serve.deploy(named("first"), name="live", options=OPTIONS)


def haproxies(folder):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/".encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def listens(pid):
    """(address, port) of every TCP socket that a process listens on, as the kernel writes them."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(handle))
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                address, _, port = words[1].partition(":")
                found.append((address, int(port, 16)))
    return found


def model(url):
    with urllib.request.urlopen(f"{url}/healthz", timeout=10) as response:
        return json.load(response)["model"]


def test_a_serve_that_does_not_start_says_why(serving, monkeypatch):
    """Before it runs here: later ones find it running."""

    def start(**_):
        raise RuntimeError("Traceback (most recent call last):\n  …\nthe proxy cannot bind")

    monkeypatch.setattr("ray.serve.start", start)
    says = (
        r"serve\.host \(127\.0\.0\.1\) and serve\.port \(\d+\): Ray Serve does not start: the proxy"
    )
    with pytest.raises(ConfigError, match=says):
        serve.deploy(named("never"), name="live", options=OPTIONS)


@contextmanager
def load(url):
    """Four clients that ask all the time; yields what they were told."""
    seen, end = Counter(), threading.Event()

    def ask():
        while not end.is_set():
            try:
                seen[model(url)] += 1
            except Exception as error:  # whatever a client may meet is what is counted
                seen[repr(error)] += 1

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield seen
    finally:
        end.set()
        for client in clients:
            client.join()


@pytest.mark.ray
def test_haproxy_listens_on_loopback_only_and_keeps_its_files_to_itself(serving, url):
    assert model(url) == "first"
    (pid,) = haproxies(serving)
    assert listens(pid) == [("0100007F", int(url.rpartition(":")[2]))]
    sockets = {path.name for path in serving.glob("*/*.sock") if path.is_socket()}
    assert sockets == {"admin.sock", "metrics.sock", "prometheus.sock", "stats.sock"}
    assert not Path("/tmp/haproxy-serve").exists() or not haproxies("/tmp/haproxy-serve")


@pytest.mark.ray
def test_a_replacement_that_fails_says_why_and_the_live_one_goes_on_answering(url):
    reason = "the bundle does not reproduce its sample; export again"
    with load(url) as seen:
        with pytest.raises(
            ConfigError,
            match=f"^the application 'live' does not start: {reason}; what was live before under this name goes on answering$",
        ):
            serve.deploy(named("second", reason), name="live", options=OPTIONS)
        time.sleep(1)
    assert set(seen) == {"first"}


@pytest.mark.ray
def test_a_replacement_answers_every_request_with_the_old_or_the_new_name(url):
    with load(url) as seen:
        again = serve.deploy(named("third"), name="live", options=OPTIONS)
        serve.wait_until_healthy(again, "third", 20)
        time.sleep(ingress.DRAIN_S + 3)  # the old replica ends in this time
    assert again == url
    assert set(seen) == {"first", "third"}
    assert model(url) == "third"


@pytest.mark.ray
def test_a_first_start_that_fails_leaves_nothing(url):
    beside = OPTIONS.model_copy(update={"route_prefix": "/beside"})
    with pytest.raises(ConfigError, match=r"'beside' does not start: broken for good$"):
        serve.deploy(named("x", "broken for good"), name="beside", options=beside)
    beside = beside.model_copy(update={"start_timeout_s": 3.0})
    with pytest.raises(
        ConfigError, match=r"it is DEPLOYING after 3 s \(.*\); raise serve.start_timeout_s"
    ):
        serve.deploy(named("x", "", 6.0), name="beside", options=beside)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/beside/healthz")


@pytest.mark.ray
def test_two_applications_stand_side_by_side_and_one_can_be_ended(url):
    beside = OPTIONS.model_copy(update={"route_prefix": "/beside", "port": 1})
    with pytest.warns(UserWarning, match=r"serve.port \(1\) is not used: .* listens on 127.0.0.1:"):
        at = serve.deploy(named("neighbour"), name="beside", options=beside)
    assert at == f"{url}/beside"
    serve.wait_until_healthy(at, "neighbour", 10)
    with pytest.raises(
        ConfigError,
        match=r"must name the model other within 0.3 s, it says: \{'ready': True, 'model': 'neighbour'\}",
    ):
        serve.wait_until_healthy(at, "other", 0.3)
    serve.undeploy("beside", "never there")
    with pytest.raises(ConfigError, match="it says: status 404"):
        serve.wait_until_healthy(at, "neighbour", 1)
    with pytest.raises(RuntimeError, match="'beside' was ended by somebody else"):
        serve.wait_while_serving("beside")
    assert model(url)


@pytest.mark.ray
def test_an_open_ray_is_used_and_what_is_on_it_stays(url):
    with serve.serving(AttachedCompute(), OPTIONS):
        pass
    assert model(url)


# ---------------------------------------------------------------------------------------------
# Refused before Ray starts


def test_a_taken_port_is_one_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ServeOptions(port=taken.getsockname()[1])
        with pytest.raises(
            ConfigError,
            match=rf"^serve.port \({options.port}\) is taken on 127.0.0.1; .*\(0: any free port\)$",
        ):
            serve.check_port(options)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"serve.host \(203.0.113.1\) .* cannot be listened on"):
        serve.check_port(ServeOptions(host="203.0.113.1", port=0))


def test_replicas_that_do_not_fit_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"serve.replicas × serve.cpus_per_replica \(3 × 1 = 3\) needs more CPUs than there are \(2\)",
    ):
        serve.check_replicas(SMALL, ServeOptions(replicas=3))


def test_haproxy_that_cannot_be_had_is_an_error_if_asked_for_and_else_serves_own_proxy(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(ingress.tempfile, "tempdir", str(tmp_path / ("d" * 60)))
    with (
        pytest.raises(
            ConfigError,
            match=r"serve.ingress: haproxy cannot be had here: names of its sockets would have \d+ bytes",
        ),
        ingress.ingress(ServeOptions(ingress="haproxy")),
    ):
        pass
    before = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY")
    with ingress.ingress(ServeOptions()) as name:
        assert name == "python"
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == before


def test_two_instances_on_one_machine_share_no_port_and_no_folder():
    names = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_HAPROXY_SOCKET_PATH")
    with ingress.ingress(OPTIONS) as kind:
        assert kind == "haproxy"
        first = [os.environ[name] for name in names]
        assert os.environ["SERVE_SOCKET_REUSE_PORT_ENABLED"] == "0"
        with ingress.ingress(OPTIONS):
            second = [os.environ[name] for name in names]
        assert [os.environ[name] for name in names] == first
    assert not set(first) & set(second)
    assert "8500" not in first + second


def test_a_configuration_of_haproxy_that_is_not_known_is_not_started():
    with pytest.raises(ValueError, match="must have two listeners to move, found 0"):
        keep_private("frontend http\n    bind *:80\n", "/private")


@pytest.mark.ray
def test_what_a_failed_run_alone_put_up_is_taken_down(url, tmp_path):
    beside = OPTIONS.model_copy(update={"route_prefix": "/alone"})
    serve.deploy(named("a", options=beside), name="alone", options=beside)
    steps = records(tmp_path, alone=False, live=True)
    assert take_down(tmp_path, [*steps, "none"], "here:1") == [
        "The run did not succeed, so `alone`, which it had put up, was taken down again."
    ]
    assert "alone" not in serve.names()
    assert "live" in serve.names()
    assert take_down(tmp_path, steps, "") == []


def test_a_reason_is_the_last_configuration_error_or_the_last_line():
    trace = "Traceback\n  rayrun.config.ConfigError: first\nrayrun.config.ConfigError: a, b\n\nmore"
    assert serve.reason_of(trace) == "a, b"
    assert serve.reason_of("ValueError: x\n") == "ValueError: x"
    assert "controller" in serve.reason_of("")
