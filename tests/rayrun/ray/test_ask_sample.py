"""The question that `helm test` asks: does this address answer as this bundle does?"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rayrun import manifest
from rayrun.ray import ask_sample

REQUEST = {"history": ["a"]}
ANSWER = [{"item": "b", "score": 0.5}, {"item": "c", "score": 0.25}]


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "sample.json").write_text(json.dumps({"request": REQUEST, "answer": ANSWER}))
    manifest.write(str(tmp_path), kind="layer_select.bundle", format_version=1, config={})
    return str(tmp_path)


@pytest.fixture
def served(bundle):
    """An application that says what the test puts into it."""
    digest = manifest.content_of(bundle)
    said = {"health": {"ready": True, "model": digest}, "model": digest, "items": ANSWER}
    said["not_yet"] = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if said["not_yet"]:
                said["not_yet"] -= 1
                return self.say(503, {"error": "starting"})
            return self.say(200, said["health"])

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if said.get("token") and self.headers["authorization"] != f"Bearer {said['token']}":
                return self.say(401, {"error": "token"})
            assert body == REQUEST
            return self.say(200, {"model": said["model"], "items": said["items"]})

        def say(self, status, content):
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    said["url"] = f"http://127.0.0.1:{server.server_address[1]}/recommender"
    yield said
    server.shutdown()
    thread.join()
    server.server_close()


def asked(served, bundle, *more):
    return ask_sample.main(
        [served["url"], "--path=/recommend", f"--bundle={bundle}", "--wait=0", *more]
    )


def test_the_same_answer_up_to_rounding_is_enough(served, bundle, capsys):
    served["items"] = [ANSWER[0] | {"score": 0.50001}, ANSWER[1]]
    assert asked(served, bundle) == 0
    assert served["model"] in capsys.readouterr().out


def test_an_application_that_starts_is_waited_for(served, bundle, monkeypatch):
    monkeypatch.setattr(ask_sample, "POLL_S", 0.01)
    served["not_yet"] = 3
    assert asked(served, bundle, "--wait=20") == 0


def test_the_token_is_sent(served, bundle, monkeypatch, capsys):
    served["token"] = "secret"
    assert asked(served, bundle) == 2
    assert "status 401" in capsys.readouterr().err
    monkeypatch.setenv("RECOMMENDER_TOKEN", "secret")
    assert asked(served, bundle, "--token-env=RECOMMENDER_TOKEN") == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"health": {"ready": True, "model": "sha256:old"}}, "sha256:old"),
        ({"model": "sha256:old"}, "answers with the model sha256:old"),
        ({"items": ANSWER[:1]}, "answer.0 has 1 items, not 2"),
        ({"items": [ANSWER[1], ANSWER[0]]}, "answer.0.0.item is 'c', not 'b'"),
        ({"items": [ANSWER[0] | {"score": 0.6}, ANSWER[1]]}, "answer.0.0.score is 0.6, not 0.5"),
        ({"items": [ANSWER[0] | {"score": True}, ANSWER[1]]}, "score is True, not 0.5"),
        ({"items": [{"item": "b"}, ANSWER[1]]}, "answer.0.0 has ['item'], not ['item', 'score']"),
        ({"health": []}, "an object is needed, found []"),
        ({"not_yet": 9}, "status 503"),
    ],
)
def test_another_model_or_another_answer_is_told(served, bundle, capsys, change, says):
    served.update(change)
    assert asked(served, bundle) == 2
    said = capsys.readouterr().err
    assert f"must answer the sample of {bundle}" in said
    assert says in said


def test_no_bundle_is_told(served, tmp_path, capsys):
    assert asked(served, tmp_path / "nothing") == 2
    assert "does not exist" in capsys.readouterr().err
