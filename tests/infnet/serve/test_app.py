"""The scorer's contract over a real socket, through the ingress that `infnet serve` has."""

import copy
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from infnet.config import ScorerServe
from infnet.serve.app import build
from infnet.serve.bundle import Bundle
from infnet.serve.export import export
from infnet.serve.run import deploy
from rayrun.config import ConfigError
from rayrun.metrics import Result
from rayrun.ray.compute import LocalCompute
from rayrun.ray.serve import deploy as deploy_application
from rayrun.ray.serve import serving

pytestmark = pytest.mark.ray

OPTIONS = ScorerServe(port=0, cpus_per_replica=0.5, start_timeout_s=60)
TIGHT = OPTIONS.model_copy(
    update={
        "route_prefix": "/tight",
        "max_ongoing_requests": 1,
        "max_queued_requests": 1,
        "token_env": "INFNET_TEST_TOKEN",
    }
)
TOKEN = "a token of this test"


@pytest.fixture(scope="module")
def ray_session():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFNET_TEST_TOKEN", TOKEN)
        compute = LocalCompute(num_cpus=2, object_store_bytes=200_000_000)
        with serving(compute, OPTIONS):
            yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


def at_bundle(at_run, run, bundle, live):
    config = at_run(run, bundle=str(bundle))
    served = OPTIONS.model_copy(update={"live": str(live)})
    return config.model_copy(update={"serve": served})


@pytest.fixture(scope="module")
def url(ray_session, trained_run, exported, at_run, place):
    found = deploy(at_bundle(at_run, trained_run, exported, place / "live"), str(place / "one"))
    assert Result.read(str(place / "one")) == found
    assert found.details["model"] == Bundle.open(str(exported)).digest
    return found.details["url"]


@pytest.fixture(scope="module")
def tight(url, exported):
    return deploy_application(build(TIGHT, str(exported)), name="tight", options=TIGHT)


@pytest.fixture(scope="module")
def sample(exported):
    return Bundle.open(str(exported)).sample


@pytest.fixture
def request_body(sample):
    """The sample request, to be spoilt."""
    return copy.deepcopy(sample["request"])


class Said:
    def __init__(self, response):
        self.status, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)


def ask(url, path="/score", body=None, method=None, **headers):
    host, _, prefix = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
        body = json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    prefix = f"/{prefix}" if prefix else ""
    connection.request(method, prefix + path, body=body, headers=headers)
    said = Said(connection.getresponse())
    connection.close()
    return said


def close_to(found, expected):
    assert [list(row) for row in found] == [list(row) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)


def test_the_sample_is_answered_over_http_as_it_was_exported(url, sample):
    health = ask(url, "/healthz").json
    assert health["ready"] is True
    said = ask(url, body=sample["request"])
    assert (said.status, said.headers["content-type"]) == (200, "application/json")
    assert said.json["model"] == health["model"]
    close_to(said.json["predictions"], sample["answer"])


def test_32_clients_at_once_get_each_their_own_answer(url, sample):
    rows = sample["request"]["candidates"]

    def one(number):
        at = number % len(rows)
        said = ask(url, body={**sample["request"], "candidates": [rows[at]]})
        return at, said.json["predictions"]

    with ThreadPoolExecutor(32) as clients:
        for at, predictions in clients.map(one, range(160)):
            close_to(predictions, [sample["answer"][at]])


def test_many_candidates_are_answered_in_their_order(url, sample):
    many = 5000  # more than batch_rows
    rows = sample["request"]["candidates"]
    body = {**sample["request"], "candidates": [rows[i % len(rows)] for i in range(many)]}
    found = ask(url, body=body).json["predictions"]
    close_to(found, [sample["answer"][i % len(rows)] for i in range(many)])


def test_the_documents_describe_the_contract_and_load_nothing(url, sample):
    document = ask(url, "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {"/score", "/healthz"}
    page = ask(url, "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert b"://" not in page.body
    assert document["info"]["version"].encode() in page.body


def spoilt(change):
    def spoil(body):
        change(body)
        return body

    return spoil


def unknown(body):
    body["candidates"][1]["colour"] = "red"


def missing(body):
    for row in [body["user"], body["context"], *body["candidates"]]:
        row.pop("number", None)


def text(body):
    body["candidates"][2]["number"] = "many"


def disordered(body):
    name = next(n for n, events in body["histories"].items() if len(events) > 1)
    body["histories"][name].reverse()


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (unknown, "candidates[1].colour"),
        (missing, "candidates[0].number"),
        (text, "candidates[2].number"),
        (disordered, "histories."),
        (lambda body: body.update(candidates=[]), "candidates"),
        (lambda body: body.update(candidates=[{}] * 100_001), "candidates"),
        (lambda body: body.update(histories={"bought": []}), "histories.bought"),
        (lambda body: body.update(user=[]), "user"),
        (lambda body: body.update(more=1), "more"),
    ],
)
def test_a_bad_request_is_422_with_the_path_of_the_field(url, request_body, spoil, path):
    spoil(request_body)
    said = ask(url, body=request_body)
    assert said.status == 422, said.body
    error = said.json["error"]
    assert error["path"].startswith(path)
    assert error["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_is_422(url, request_body, number):
    request_body["candidates"][0]["number"] = "HERE"
    said = ask(url, body=json.dumps(request_body).replace('"HERE"', number).encode())
    assert said.status == 422, said.body


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_what_is_no_request_is_422(url, body):
    assert ask(url, body=body, method="POST").status == 422


def test_a_body_of_50_mb_is_413_declared_or_not(url):
    whole = b" " * 50_000_000
    assert ask(url, body=whole).status == 413

    def parts():
        for _ in range(50):
            yield whole[:1_000_000]

    said = ask(url, body=parts())  # chunked: no length is declared
    assert said.status == 413
    assert "at most 16,777,216 bytes" in said.json["error"]["message"]
    assert ask(url, "/healthz").status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/score", 405, "POST"),
        ("DELETE", "/healthz", 405, "GET"),
        ("GET", "/nowhere", 404, None),
        ("GET", "/", 404, None),
    ],
)
def test_other_paths_and_methods_are_refused_as_json(url, method, path, status, allow):
    said = ask(url, path, method=method)
    assert (said.status, said.headers["allow"]) == (status, allow)
    assert said.json["error"]["message"]


def test_a_token_is_asked_for_where_one_is_configured(tight, sample):
    assert ask(tight, "/healthz").status == 200
    for given in ({}, {"Authorization": "Bearer other"}):
        said = ask(tight, body=sample["request"], **given)
        assert (said.status, said.headers["www-authenticate"]) == (401, "Bearer")
    said = ask(tight, body=sample["request"], Authorization=f"Bearer {TOKEN}")
    close_to(said.json["predictions"], sample["answer"])


def test_one_request_too_many_is_503_with_retry_after_and_health_is_answered_meanwhile(
    tight, sample
):
    """Callers who never send their bodies take the one place and the one in the queue."""
    host, _, port = tight.removeprefix("http://").partition("/")[0].partition(":")
    head = (
        f"POST /tight/score HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 1000\r\n\r\n{"
    )
    slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
    try:
        for one in slow:
            one.sendall(head.encode())
        threading.Event().wait(1)  # else this request may be the one that queues
        busy = ask(tight, body=sample["request"], Authorization=f"Bearer {TOKEN}")
        assert busy.status == 503
        assert busy.headers["retry-after"] == "1"
        assert "busy: 1 requests are being answered and 1 wait" in busy.json["error"]["message"]
        assert ask(tight, "/healthz").status == 200
    finally:
        for one in slow:
            one.close()
    for _ in range(50):  # that they have gone is noticed in the server's own time
        if ask(tight, body=sample["request"], Authorization=f"Bearer {TOKEN}").status == 200:
            return
        threading.Event().wait(0.1)
    pytest.fail("the places are not given back")


# the last one: it replaces what the others ask


def test_a_new_bundle_under_load_answers_every_request_and_becomes_the_live_one(
    url, trained_run, exported, at_run, place, sample
):
    rival = place / "rival"
    export(at_run(trained_run), str(rival), rival="logistic")
    digests = [Bundle.open(str(uri)).digest for uri in (exported, rival)]
    assert Bundle.open(str(place / "live")).digest == digests[0]
    end, seen = threading.Event(), []

    def client():
        while not end.is_set():
            said = ask(url, body=sample["request"])
            seen.append((said.status, said.json.get("model")))

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(client) for _ in range(4)]
        try:
            config = at_bundle(at_run, trained_run, rival, place / "live")
            found = deploy(config, str(place / "two"))
            threading.Event().wait(5)  # the old replica ends in this time
        finally:
            end.set()
        for one in asking:
            one.result()
    assert set(seen) == {(200, digests[0]), (200, digests[1])}
    told = {"url": url, "model": digests[1], "application": "scorer", "replaced": True}
    assert found.details == told
    assert Bundle.open(str(place / "live")).digest == digests[1]
    assert ask(url, "/healthz").json["model"] == digests[1]


def test_a_replica_without_its_token_says_so_and_what_is_live_goes_on(url, exported):
    options = OPTIONS.model_copy(update={"token_env": "NO_SUCH_VARIABLE"})
    with pytest.raises(
        ConfigError, match="does not start: serve.token_env names .* NO_SUCH_VARIABLE.*goes on"
    ):
        deploy_application(build(options, str(exported)), name="scorer", options=options)
    assert ask(url, "/healthz").status == 200
