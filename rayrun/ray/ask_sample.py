"""Does an application answer? It names the model of a bundle, and its sample as the bundle does.

python -m rayrun.ray.ask_sample http://HOST:8000/scorer --path=/score --bundle=s3://models/scorer/7

What `helm test` of the chart runs in a pod. Nothing of a product is imported: every bundle keeps
a request and the answer to it.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rayrun import manifest, storage
from rayrun.config import ConfigError, Json

SAMPLE = "sample.json"
TOLERANCE = 1e-3
"""Largest difference of two numbers that count as equal, relative above 1: other processors round
otherwise. Replicas check their own answer more closely before they are healthy."""
POLL_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """0: it answers; 2: it does not, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m rayrun.ray.ask_sample")
    parser.add_argument("url", help="of the application: http://HOST:8000/scorer")
    parser.add_argument("--path", required=True, help="what it answers: /score or /recommend")
    parser.add_argument("--bundle", required=True, help="URI of the bundle that it serves")
    parser.add_argument(
        "--wait", type=float, default=60, help="seconds until it must (%(default)s)"
    )
    parser.add_argument("--token-env", default="", help="variable with the bearer token")
    given = parser.parse_args(argv)
    try:
        model = ask(
            given.url.rstrip("/"),
            path=given.path,
            bundle=given.bundle,
            wait_s=given.wait,
            token=os.environ.get(given.token_env, ""),
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.url}{given.path} answers the sample of {given.bundle}, model {model}")
    return 0


def ask(url: str, *, path: str, bundle: str, wait_s: float, token: str = "") -> str:
    """Wait until the application names the bundle's model and answers its sample; the digest.

    Raises:
        ConfigError: no bundle there, or the application does not within `wait_s`; with what it
            said last.
    """
    model = manifest.inside(bundle)[""].content_digest
    sample: Json = json.loads(storage.read_bytes(storage.join(bundle, SAMPLE)))
    until = time.monotonic() + wait_s
    while problem := _problem(url, path, model, sample, token):
        if time.monotonic() >= until:
            raise ConfigError(
                f"{url} must answer the sample of {bundle} (model {model}) within {wait_s:g} s: "
                f"{problem}; look at the application's message in the RayService's status"
            )
        time.sleep(POLL_S)
    return model


def _problem(url: str, path: str, model: str, sample: Json, token: str) -> str:
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        said = _get(urllib.request.Request(f"{url}/healthz"))
        if said != {"ready": True, "model": model}:
            return f"{url}/healthz says {said}"
        body = json.dumps(sample["request"]).encode()
        said = _get(urllib.request.Request(f"{url}{path}", body, headers))
    except urllib.error.HTTPError as error:
        return f"status {error.code}: {error.read(500).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return str(error)
    if said.get("model") != model:
        return f"{url}{path} answers with the model {said.get('model')}"
    answers = [value for key, value in said.items() if key != "model"]
    where = _difference(answers, [sample["answer"]], "answer")
    return f"{url}{path} answers otherwise than the bundle: {where}" if where else ""


def _get(request: urllib.request.Request) -> Json:
    with urllib.request.urlopen(request, timeout=30) as response:
        said: Any = json.load(response)
    if not isinstance(said, dict):
        raise ValueError(f"an object is needed, found {said!r:.200}")
    return cast(Json, said)


def _difference(found: Any, wanted: Any, where: str) -> str:
    """The first place where two JSON values differ, beyond rounding; empty if none does."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return "" if found is wanted else f"{where} is {found}, not {wanted}"
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        near = abs(found - wanted) <= TOLERANCE * max(1.0, abs(wanted))
        return "" if near else f"{where} is {found}, not {wanted}"
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        ours, theirs = cast(Json, found), cast(Json, wanted)
        if ours.keys() != theirs.keys():
            return f"{where} has {sorted(ours)}, not {sorted(theirs)}"
        pairs = [(ours[key], theirs[key], f"{where}.{key}") for key in ours]
    elif isinstance(found, list) and isinstance(wanted, list):
        one, other = cast(list[Any], found), cast(list[Any], wanted)
        if len(one) != len(other):
            return f"{where} has {len(one)} items, not {len(other)}"
        pairs = [(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return "" if found == wanted else f"{where} is {found!r}, not {wanted!r}"
    return next((text for pair in pairs if (text := _difference(*pair))), "")


if __name__ == "__main__":
    sys.exit(main())
