"""From bodies to predictions: order, independence of the batch, limits on one call of the model."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infnet.config import ScorerServe
from infnet.serve.bundle import Bundle
from infnet.serve.predict import Predictor
from infnet.serve.request import RequestError
from rayrun.config import Json

HOUR = 3_600_000
Scores = list[dict[str, float]]


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    return Bundle.open(str(exported))


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle, ScorerServe())


def request(seed: int, *, candidates: int, events: int = 0) -> Json:
    random = np.random.default_rng(seed)

    def row() -> Json:
        return {
            "item": int(random.integers(0, 35)),
            "tag": [None, "a", "été", "never seen"][int(random.integers(4))],
            "number": None if random.random() < 0.2 else float(random.normal(3, 2)),
            "steps": None if random.random() < 0.2 else random.random(5).tolist(),
            "past": random.integers(0, 40, int(random.integers(0, 5))).tolist(),
        }

    past = [{"item": int(random.integers(30)), "tag": "a", "at": HOUR * i} for i in range(events)]
    return {
        "user": {"user": int(random.integers(12))},
        "context": {"at": HOUR * 200},
        "histories": {"clicks": past},
        "candidates": [row() for _ in range(candidates)],
    }


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    """Requests of one candidate and of many, with short and long histories and with none."""
    shapes = [(1, 0), (7, 3), (3, 60), (1, 1), (12, 2)]
    return [
        json.dumps(request(seed, candidates=c, events=e)).encode()
        for seed, (c, e) in enumerate(shapes)
    ]


def alone(predictor: Predictor, bodies: list[bytes]) -> list[Scores]:
    return [predictor.score([predictor.encode(body)])[0] for body in bodies]


def assert_same(found: list[Scores], expected: list[Scores]) -> None:
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for row, wanted in zip(one, other, strict=True):
            assert row == pytest.approx(wanted, rel=0, abs=1e-6)


@pytest.fixture
def calls(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the model."""
    found: list[int] = []
    score: Callable[..., Any] = bundle.score

    def counted(rows: Any) -> Any:
        found.append(len(rows))
        return score(rows)

    monkeypatch.setattr(bundle, "score", counted)
    return found


def test_the_sample_of_a_bundle_is_answered_as_it_says(bundle, predictor):
    sample = bundle.sample
    found = predictor.score([predictor.encode(json.dumps(sample["request"]).encode())])
    assert_same(found, [sample["answer"]])


def test_requests_scored_together_get_what_each_gets_alone(predictor, bodies, calls):
    expected = alone(predictor, bodies)
    calls.clear()
    assert_same(predictor.score([predictor.encode(body) for body in bodies]), expected)
    assert calls == [24]
    assert len({json.dumps(one) for one in expected}) == len(bodies)


def test_a_long_history_is_not_copied_to_be_scored_in_company(bundle, predictor, calls):
    """Two requests of many candidates and one history go alone, the small ones together."""
    sizes = [(300, 60), (2, 3), (500, 4), (4, 60)]
    asked = [request(seed, candidates=c, events=e) for seed, (c, e) in enumerate(sizes)]
    for one in asked:
        for row in one["candidates"]:
            row.pop("past")
        one["user"]["past"] = [3, 1, 4]
    encoded = [predictor.encode(json.dumps(one).encode()) for one in asked]
    assert all(one.rows.one_history for one in encoded)
    found = predictor.score(encoded)
    assert calls == [300, 500, 6]
    copies = [dataclasses.replace(one, rows=one.rows.per_row()) for one in encoded]
    calls.clear()
    assert_same(found, predictor.score(copies))
    assert calls == [806]


def test_candidates_keep_their_order(predictor):
    asked = request(3, candidates=9, events=5)
    found = predictor.score([predictor.encode(json.dumps(asked).encode())])[0]
    asked["candidates"].reverse()
    turned = predictor.score([predictor.encode(json.dumps(asked).encode())])[0]
    assert_same([turned[::-1]], [found])
    assert len({row["click"] for row in found}) == 9


@pytest.mark.parametrize(
    ("batch_rows", "expected"),
    [(7, [1, 7, 4, 7, 5]), (12, [12, 12]), (1, [1] * 24)],
)
def test_a_call_of_the_model_has_at_most_batch_rows_rows(
    bundle, predictor, bodies, calls, batch_rows, expected
):
    whole = alone(predictor, bodies)
    calls.clear()
    small = Predictor(bundle, ScorerServe(batch_rows=batch_rows))
    assert_same(small.score([small.encode(body) for body in bodies]), whole)
    assert calls == expected


def test_threads_encode_without_disturbing_each_other(predictor, bodies):
    with ThreadPoolExecutor(4) as threads:
        encoded = list(threads.map(predictor.encode, bodies * 10))
    expected = alone(predictor, bodies)
    assert_same(predictor.score(encoded), expected * 10)


def test_the_most_candidates_of_a_request_are_those_of_the_options(bundle):
    predictor = Predictor(bundle, ScorerServe(max_candidates=3))
    assert len(predictor.encode(json.dumps(request(0, candidates=3)).encode())) == 3
    with pytest.raises(RequestError, match="candidates: must hold 1 to 3 candidates, found 4"):
        predictor.encode(json.dumps(request(0, candidates=4)).encode())


def test_numbers_that_the_model_has_no_finite_answer_to_are_refused(predictor):
    asked = request(0, candidates=2)
    asked["candidates"][1]["number"] = 1e300
    encoded = predictor.encode(json.dumps(asked).encode())
    with pytest.raises(RequestError, match=r"candidates\[1\]: has numbers so far from those") as it:
        predictor.score([encoded])
    assert it.value.status == 422


def test_the_server_path_needs_neither_torch_nor_ray():
    code = (
        "import sys, infnet.serve.predict, infnet.serve.openapi\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
