"""Bytes that are no request: no JSON, a key twice, numbers and texts out of bounds."""

import json

import pytest

from tests.infnet.serve.request_bodies import ROW, body, read, refused, with_value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the body must be JSON in UTF-8: it is empty"),
        (b'{"user": {},\n "candidates": [}', "line 2 column 17"),
        (b'{"user": {"age": NaN}}', "NaN is no JSON number at line 1 column 18; send null"),
        (b'{"user": {"age": -Infinity}}', "-Infinity is no JSON number at line 1 column 18"),
        (b'{"user": {"tag": "\xff"}}', "line 1 column"),
        (b'{"user": {"tag": "\\ud800"}}', "line 1 column"),
        (b"[" * 5000, "recursion limit exceeded"),
        (b'{"user": {}} {}', "trailing characters at line 1 column"),
    ],
)
def test_a_body_that_is_not_json_is_told_with_its_place(text, message):
    found = refused(text)
    assert found.path == ""
    assert message in found.message


def test_a_number_that_overflows_is_refused():
    assert refused(json.dumps(body()).replace("2.5", "1e999").encode()).message.endswith(
        "found inf"
    )


@pytest.mark.parametrize("space", ["", " ", "\n"])
@pytest.mark.parametrize("key", ["item", "\\u0069tem"])
def test_a_key_that_stands_twice_is_refused(space, key):
    text = json.dumps(body()).replace('"item": 7,', f'"{key}"{space}:7, "item": 7,', 1)
    found = refused(text.encode())
    assert (found.path, "stands twice" in found.message) == ("item", True)


def test_colons_in_values_are_no_keys():
    request = body(user={"user": 5, "tag": 'a":"b" : '}, candidates=[{**ROW, "tag": '":":":"'}])
    assert read(request).candidates["tag"].to_pylist() == ['":":":"']


@pytest.mark.parametrize("place", ["name", "value"])
def test_a_huge_text_is_not_repeated(place):
    huge = "x" * 1_000_000
    found = refused(with_value(huge, 1) if place == "name" else with_value("item", huge))
    assert len(str(found)) < 500
