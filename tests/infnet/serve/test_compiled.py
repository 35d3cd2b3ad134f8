"""What the server encodes by blocks of columns is what the table path encodes, to the bit."""

import json
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.features import Feature
from infnet.features.arrays import Arrays, to_arrays, together
from infnet.features.compiled import RequestEncoder
from infnet.features.encoder import Encoder
from infnet.features.feature_set import FeatureSet
from infnet.features.request import encode_request
from infnet.serve.request import RequestReader
from rayrun.config import Json
from tests.infnet.features import feature_log
from tests.infnet.serve import skew_log

BEHAVIOURS = {"clicks": ("item", "tag", "number"), "seen": ("item", "born")}
UNSEEN: dict[str, Any] = {
    "user": "nobody",
    "item": 2**31 - 1,
    "city": 7.25,
    "born": "2031-01-01",
    "tag": "never seen before, and long",
    "number": -1e30,
    "price": 1e-30,
    "shown": 10**15,
    "bought": -3,
    "stock": "1e300",
    "fresh": True,
    "steps": [None] * 4,
    "past": [10**12, 3],
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    config = skew_log.write(tmp_path_factory.mktemp("compiled"))
    log = skew_log.log()
    roles = config.data.source.columns
    features = FeatureSet(config.features, config.tasks, roles, log.schema)
    rows = log.append_column("__row_id", pa.array(np.arange(log.num_rows)))
    return feature_log.fit(features, rows.slice(0, 600))


@pytest.fixture(scope="module")
def known() -> dict[str, list[Any]]:
    """Values of every column, as a client writes them; null where the log has gaps."""
    rows = skew_log.log().slice(500, 120)
    return {name: [skew_log.as_json(v) for v in rows[name].to_pylist()] for name in (*UNSEEN, "at")}


def random_request(random: np.random.Generator, known: dict[str, list[Any]]) -> Json:
    """Columns stand anywhere, some twice; candidates have one time, few times, or each its own."""

    def value(name: str) -> Any:
        chance = random.random()
        if chance < 0.1 and name != "user":
            return None
        return UNSEEN[name] if chance < 0.25 else known[name][random.integers(len(known[name]))]

    def some(share: float) -> Json:
        return {name: value(name) for name in UNSEEN if random.random() < share}

    now = skew_log.TEST_FROM
    moments = [now - int(hours) * skew_log.HOUR for hours in random.integers(0, 30, 3)]
    count = int(random.integers(1, 7))
    carried = [name for name in UNSEEN if random.random() < random.choice([0.0, 0.5, 1.0])]
    user, context = some(0.3), some(0.2)
    for name in UNSEEN:
        if name not in carried and name not in user | context:
            context[name] = value(name)
    candidates = [{name: value(name) for name in carried} for _ in range(count)]
    if random.random() < 0.5:
        context["at"] = now
    else:
        for row in candidates:
            row["at"] = moments[random.integers(len(moments))]
    if random.random() < 0.3 and carried:  # a candidate without a column that is shared
        user.setdefault(carried[0], value(carried[0]))
        candidates[0].pop(carried[0])
    return {
        "user": user,
        "context": context,
        "histories": {
            behaviour: [
                {name: value(name) for name in columns} | {"at": now - hours * skew_log.HOUR}
                for hours in sorted(random.integers(-3, 60, random.integers(0, 15)).tolist())[::-1]
            ]
            for behaviour, columns in BEHAVIOURS.items()
            if random.random() < 0.8
        },
        "candidates": candidates,
    }


def assert_equal(found: Arrays, expected: Arrays) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.dense, expected.dense)
    assert list(found.sequences) == list(expected.sequences)
    for name, sequence in expected.sequences.items():
        for part in ("ids", "ages", "lengths"):
            ours, theirs = getattr(found.sequences[name], part), getattr(sequence, part)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}.{part}")


def both(encoder: Encoder, request: Json) -> tuple[Arrays, Arrays]:
    """(as the server encodes it, as a table would be)."""
    read = RequestReader(encoder, max_candidates=100).read(json.dumps(request).encode())
    found = RequestEncoder(encoder).encode(read.shared, read.candidates, read.histories)
    return found, to_arrays(encode_request(encoder, **request), encoder.schema())


def test_every_type_of_feature_is_there(encoder):
    union, _ = get_args(Feature)
    assert {type(f) for f in encoder.features.features.values()} == set(get_args(union))
    assert set(UNSEEN) | {"at"} == set(encoder.features.columns(labels=False))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_request_is_encoded_as_its_rows_would_be_in_a_table(encoder, known, seed):
    request = random_request(np.random.default_rng(seed), known)
    found, expected = both(encoder, request)
    assert len(found) == len(request["candidates"])
    assert_equal(found.per_row(), expected)


def test_candidates_of_one_time_have_one_history_and_of_several_each_its_own(encoder, known):
    request = random_request(np.random.default_rng(1), known)
    row = {name: values[0] for name, values in known.items()} | {"past": [3], "user": "u1"}
    shared = {name: row.pop(name) for name in ("user", "past", "at")}
    one = {**request, "user": shared, "context": {}, "candidates": [row] * 5}
    found, expected = both(encoder, one)
    assert (len(found), found.one_history) == (5, True)
    assert {len(s.lengths) for s in found.sequences.values()} == {1}
    assert_equal(found.per_row(), expected)
    for change in ({"at": shared["at"] - 1}, {"past": [4, 5]}):
        found, expected = both(encoder, {**one, "candidates": [row, {**row, **change}]})
        assert {len(s.lengths) for s in found.sequences.values()} == {2}
        assert_equal(found, expected)


def test_requests_together_are_their_rows_one_after_the_other(encoder, known):
    random = np.random.default_rng(2)
    requests = [random_request(random, known) for _ in range(6)]
    pairs = [both(encoder, request) for request in requests]
    tables = [encode_request(encoder, **request) for request in requests]
    expected = to_arrays(pa.concat_tables(tables), encoder.schema())
    assert_equal(together([found for found, _ in pairs]), expected)
    assert together([pairs[0][0]]) is pairs[0][0]


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (4, 99)])
def test_some_candidates_are_encoded_as_they_are_among_all(encoder, known, start, stop):
    random = np.random.default_rng(3)
    rows = [random_request(random, known)["candidates"][0] for _ in range(5)]
    names = sorted(set().union(*rows) - {"at"})
    rows = [{n: known[n][at] for n in names} for at in range(5)]
    rest = {n: known[n][7] for n in known if n not in names}
    request = {"user": rest, "candidates": rows}
    read = RequestReader(encoder, max_candidates=100).read(json.dumps(request).encode())
    compiled = RequestEncoder(encoder)
    whole = compiled.encode(read.shared, read.candidates, read.histories).per_row()
    part = compiled.encode(read.shared, read.candidates.between(start, stop), read.histories)
    np.testing.assert_array_equal(part.ids, whole.ids[start:stop])
    np.testing.assert_array_equal(part.dense, whole.dense[start:stop])
