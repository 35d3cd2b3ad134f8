"""The few messages that client-go sends as protobuf though it could send JSON: decoded to JSON.

Kubernetes' envelope is `k8s` and a zero byte, then `runtime.Unknown`; numbers of fields are those of
k8s.io/api's generated.proto.
"""

import base64
from typing import Any

Json = Any
Fields = dict[int, tuple[str, Any]]

TEXT, BOOL, INT, BYTES = "text", "bool", "int", "bytes"

MAP_TEXT = ("map", TEXT)
MAP_BYTES = ("map", BYTES)
OWNER: Fields = {
    1: ("kind", TEXT),
    3: ("name", TEXT),
    4: ("uid", TEXT),
    5: ("apiVersion", TEXT),
    6: ("controller", BOOL),
    7: ("blockOwnerDeletion", BOOL),
}
META: Fields = {
    1: ("name", TEXT),
    2: ("generateName", TEXT),
    3: ("namespace", TEXT),
    5: ("uid", TEXT),
    6: ("resourceVersion", TEXT),
    11: ("labels", MAP_TEXT),
    12: ("annotations", MAP_TEXT),
    13: ("ownerReferences", ("list", OWNER)),
    14: ("finalizers", ("list", TEXT)),
}
PRECONDITIONS: Fields = {1: ("uid", TEXT), 2: ("resourceVersion", TEXT)}
KINDS: dict[str, Fields] = {
    "Secret": {
        1: ("metadata", META),
        2: ("data", MAP_BYTES),
        3: ("type", TEXT),
        4: ("stringData", MAP_TEXT),
        5: ("immutable", BOOL),
    },
    "ConfigMap": {
        1: ("metadata", META),
        2: ("data", MAP_TEXT),
        3: ("binaryData", MAP_BYTES),
        4: ("immutable", BOOL),
    },
    "Namespace": {1: ("metadata", META)},
    "ServiceAccount": {1: ("metadata", META)},
    "SelfSubjectAccessReview": {
        2: (
            "spec",
            {
                1: (
                    "resourceAttributes",
                    {
                        1: ("namespace", TEXT),
                        2: ("verb", TEXT),
                        3: ("group", TEXT),
                        5: ("resource", TEXT),
                        6: ("subresource", TEXT),
                        7: ("name", TEXT),
                    },
                )
            },
        ),
    },
    "DeleteOptions": {
        1: ("gracePeriodSeconds", INT),
        2: ("preconditions", PRECONDITIONS),
        4: ("propagationPolicy", TEXT),
        5: ("dryRun", ("list", TEXT)),
    },
}
UNKNOWN: Fields = {
    1: ("typeMeta", {1: ("apiVersion", TEXT), 2: ("kind", TEXT)}),
    2: ("raw", "raw"),
}


def decoded(body: bytes) -> Json:
    """An object as JSON.

    Raises:
        ValueError: no envelope, or a kind that is not in KINDS.
    """
    if not body.startswith(b"k8s\0"):
        raise ValueError("not Kubernetes' protobuf")
    outer = _message(body[4:], UNKNOWN)
    kind = outer["typeMeta"]["kind"]
    if kind not in KINDS:
        raise ValueError(f"api_protobuf.KINDS has no {kind}; give it its fields")
    return {**outer["typeMeta"], **_message(outer.get("raw", b""), KINDS[kind])}


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _message(data: bytes, fields: Fields) -> dict[str, Json]:
    found: dict[str, Json] = {}
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _number(data, at)
        elif wire == 2:
            size, at = _number(data, at)
            value, at = data[at : at + size], at + size
        else:
            at += 8 if wire == 1 else 4
            continue
        if number not in fields:
            continue
        name, kind = fields[number]
        if isinstance(kind, tuple) and kind[0] == "map":
            assert isinstance(value, bytes)
            pair = _message(value, {1: ("key", TEXT), 2: ("value", kind[1])})
            found.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")
        elif isinstance(kind, tuple):
            found.setdefault(name, []).append(_value(value, kind[1]))
        elif value != b"":  # what is not set is written as an empty text
            found[name] = _value(value, kind)
    return found


def _value(value: Any, kind: Any) -> Json:
    if isinstance(kind, dict):
        return _message(value, kind)
    if kind == TEXT:
        return value.decode()
    if kind == BYTES:
        return base64.b64encode(value).decode()
    return bool(value) if kind == BOOL else value
