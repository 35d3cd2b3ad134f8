"""A few requests to what a pipeline deployed: those that its bundle brings along."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from pipelines import Application
from pipelines.compiled import PipelineError

TOP = 5
"""Candidates of an answer that the report shows."""

WHAT = {"infnet": "candidates scored", "layer-select": "items recommended"}
"""What an application does, by its program."""


def ask(application: Application, url: str, bundle: str) -> list[dict[str, Any]]:
    """Ask for a few users over HTTP.

    Args:
        application: what answers.
        url: of the application.
        bundle: URI of the bundle that it serves.

    Returns:
        Per request: `application` (its name), `program`, `url`, `user` (who asks), `candidates`
        (how many were answered), `milliseconds`, `top` (the best of them).

    Raises:
        PipelineError: the application refuses a request of its own bundle.
    """
    from rayrun import storage

    sample = json.loads(storage.read_bytes(storage.join(bundle, "sample.json")))
    recommends = application.program == "layer-select"
    requests = _recommendations(sample) if recommends else _scores(sample)
    route = "recommend" if recommends else "score"
    found: list[dict[str, Any]] = []
    for user, request in requests.items():
        began = time.perf_counter()
        said = _post(f"{url}/{route}", request)
        took = (time.perf_counter() - began) * 1000
        rows = said["items"] if recommends else _scored(request, said["predictions"])
        found.append(
            {
                "application": application.name,
                "program": application.program,
                "url": url,
                "user": user,
                "candidates": len(rows),
                "milliseconds": took,
                "top": rows[:TOP],
            }
        )
    return found


def _scored(
    request: Mapping[str, Any], predictions: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """Candidates with their predictions, the best by the first task first."""
    pairs = zip(request["candidates"], predictions, strict=True)
    rows = [{**_few(candidate), **scores} for candidate, scores in pairs]
    first = next(iter(predictions[0]))
    return sorted(rows, key=lambda row: -row[first])


def _scores(sample: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Requests to the scorer by who asks."""
    first: dict[str, Any] = sample["request"]
    empty: dict[str, list[Any]] = {name: [] for name in first["histories"]}
    others = enumerate(sample.get("others", []), start=2)
    return {
        "user 1 of the log": first,
        **{f"user {number} of the log": asked for number, asked in others},
        "user 1 with no history": {**first, "histories": empty},
    }


def _recommendations(sample: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Requests to the recommender by who asks."""
    first: dict[str, Any] = sample["request"]
    return {
        "user 1 of the log": first,
        "user 1 after one item": {**first, "history": first["history"][:1]},
        "user 1, nothing again": {**first, "exclude": sorted(set(first["history"]))},
    }


def _few(row: Mapping[str, Any]) -> dict[str, Any]:
    """The first features of a candidate: short ones."""
    short = {k: v for k, v in row.items() if isinstance(v, str | int | float | bool)}
    return dict(list(short.items())[:3])


def _post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", errors="replace")[:500]
        raise PipelineError(
            f"{url} refuses the bundle's own sample with {error.code}: {said}; export again"
        ) from None
