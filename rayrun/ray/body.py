"""A request body as plain data: JSON, with no key twice and no number that JSON does not have."""

import json
import re
from typing import Any, cast

from pydantic_core import from_json

from rayrun.config import Json

_PLACE = re.compile(r"line (\d+) column (\d+)$")
_NO_NUMBER = re.compile(rb"[-+]?(NaN|Infinity|nan|inf)")
SHOWN = 60
"""Characters of a wrong value that an error repeats."""
NAME_SHOWN = 80
"""Characters of an unknown name that an error repeats."""


class RequestError(ValueError):
    """A request is refused: an HTTP `status` and the `path` of the field, `candidates[3].price`."""

    def __init__(self, status: int, path: str, message: str) -> None:
        """`message` says what is required and what was found; an empty path is the whole body."""
        super().__init__(f"{path}: {message}" if path else message)
        self.status, self.path, self.message = status, path, message

    def body(self) -> Json:
        """The JSON that the caller gets."""
        return {"error": {"path": self.path, "message": self.message}}


def cut(name: str) -> str:
    """A name from a request, short enough to be repeated."""
    return name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "…"


def shown(value: Any) -> str:
    """A wrong value as JSON writes it, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"an array of {len(cast(list[Any], value))}"
    if isinstance(value, str):
        return f'"{value[:SHOWN]}{"…" if len(value) > SHOWN else ""}"'
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return "an integer of many digits"
    return str(value)


def decode(body: bytes) -> Any:
    """Plain data of a JSON text in UTF-8; deeper than 200 levels is refused.

    Raises:
        RequestError: 422, with line and column.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)
    place = _PLACE.search(reason)
    if not body.strip():
        reason = "it is empty"
    elif place:
        line, column = int(place[1]), int(place[2])
        text = body.splitlines()[line - 1] if line <= len(body.splitlines()) else b""
        found = _NO_NUMBER.match(text, max(0, column - 2)) or _NO_NUMBER.match(
            text, max(0, column - 1)
        )
        if found:
            reason = (
                f"{found[0].decode()} is no JSON number at line {line} column {found.start() + 1}; "
                "send null if the value is unknown"
            )
    raise RequestError(422, "", f"the body must be JSON in UTF-8: {reason}")


def refuse_twice(body: bytes, num_keys: int) -> None:
    """Refuse a key that stands twice in one object: of two values, one would be lost silently.

    `num_keys` are the keys of all objects after decoding. Each key of the text has a colon, after a
    quotation mark or space; where there are no more such colons than keys, no key was lost, and the
    body need not be read again.

    Raises:
        RequestError: 422, naming the key.
    """
    if body.count(b":") <= num_keys:
        return
    if sum(body.count(before + b":") for before in (b'"', b" ", b"\t", b"\n", b"\r")) <= num_keys:
        return
    json.loads(body, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestError(
                    422, cut(name), "stands twice in one object of the body; send it once"
                )
            seen.add(name)
    return found
