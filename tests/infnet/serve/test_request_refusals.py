"""Every way a request can be wrong is told with the field's path."""

import pytest

from tests.infnet.serve.request_bodies import ROW, body, refused, with_event, with_value


@pytest.mark.parametrize("where", ["user", "context", "candidates"])
def test_an_unknown_field_is_named_with_the_nearest(where):
    wrong = {"vser": 1}
    request = {
        "user": body(user={"user": 5, **wrong}),
        "context": body(context={"at": 1, **wrong}),
        "candidates": body(candidates=[ROW, {**ROW, **wrong}]),
    }[where]
    found = refused(request)
    path = {"user": "user.vser", "context": "context.vser", "candidates": "candidates[1].vser"}
    assert found.path == path[where]
    assert "is unknown; the nearest is 'user'; the columns are user, at, item" in found.message


@pytest.mark.parametrize(
    ("request_", "path", "message"),
    [
        ([1], "", "must be an object with user, context, histories, candidates, found an array"),
        ({**body(), "candidats": 1}, "candidats", "is unknown; the nearest is 'candidates'"),
        (body(user=[]), "user", "must be an object, found an array of 0"),
        (body(context=None), "context", "must be an object, found null"),
        (body(histories=[]), "histories", "must be an object"),
        (
            body(histories={"clikcs": []}),
            "histories.clikcs",
            "is unknown; the nearest is 'clicks'; the behaviours are clicks, seen",
        ),
        (body(histories={"clicks": {}}), "histories.clicks", "must be an array of events"),
        (
            body(histories={"clicks": [7]}),
            "histories.clicks[0]",
            "must be an object, found 7",
        ),
        ({"user": {}}, "candidates", "is required: an array of 1 to 600 objects"),
        (body(candidates={}), "candidates", "must be an array of candidates, found an object"),
        (body(candidates=[ROW, "x"]), "candidates[1]", 'must be an object, found "x"'),
        (body(candidates=[]), "candidates", "must hold 1 to 600 candidates, found 0"),
        (body(candidates=[ROW] * 601), "candidates", "must hold 1 to 600 candidates, found 601"),
    ],
)
def test_a_wrong_structure_is_told_with_its_path(request_, path, message):
    found = refused(request_)
    assert (found.path, message in found.message) == (path, True), found.message


@pytest.mark.parametrize(
    ("name", "value", "path", "message"),
    [
        ("item", True, "item", "must be a 64-bit integer, found true"),
        ("item", "7", "item", 'found "7"'),
        ("item", 7.5, "item", "found 7.5"),
        ("item", 2**63, "item", "found 9223372036854775808"),
        ("item", 10**400, "item", "found an integer of many digits"),
        ("user", 2**31, "user", "an integer from -2147483648 to 2147483647"),
        ("tag", 7, "tag", "text in quotation marks, found 7"),
        ("tag", {"a": 1}, "tag", "found an object"),
        ("tag", ["a"], "tag", "found an array of 1"),
        ("price", True, "price", "a number within ±3.4e+38, found true"),
        ("price", "1", "price", 'found "1"'),
        ("price", 1e39, "price", "found 1e+39"),
        ("age", 10**400, "age", "found an integer of many digits"),
        ("new", 1, "new", "true or false"),
        ("steps", "abc", "steps", "an array of values, each a finite number"),
        ("steps", [1, 2, "x"], "steps[2]", 'a finite number, found "x"'),
        ("pair", [1], "pair", "an array of 2 values"),
        ("past", [1, 2], "past[0]", "text in quotation marks"),
        ("born", "28.2.1990", "born", "an ISO 8601 date such as"),
        ("born", 7, "born", "an ISO 8601 date such as"),
        ("shown", 1650412800000, "shown", "an ISO 8601 date-time such as"),
        ("shown", "2500-01-01", "shown", "an ISO 8601 date-time such as"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_told_with_what_is_needed(name, value, path, message):
    found = refused(with_value(name, value))
    assert found.path == f"candidates[1].{path}"
    assert message in found.message
    assert refused(body(context={"at": 1, name: value})).path == f"context.{path}"


def test_a_value_that_a_later_part_wins_over_is_checked_all_the_same():
    assert refused(body(user={"user": 5, "at": "noon"})).path == "user.at"
    found = refused(body(context={"at": 1000, "tag": 7}))
    assert (found.path, found.message) == (
        "context.tag",
        "must be text in quotation marks, found 7",
    )


def test_of_several_wrong_values_the_first_one_is_told():
    wrong = {**ROW, "item": "x", "new": 3, "age": "y"}
    for order in (list(wrong), list(wrong)[::-1]):
        found = refused(body(candidates=[{name: wrong[name] for name in order}]))
        first = min(("item", "new", "age"), key=order.index)
        assert found.path == f"candidates[0].{first}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("price", -1, "price is -1 or less, under log1p"),
        ("steps", [1, 2], "the window steps has another number of steps than 3"),
        ("level", "high", "level is not a finite number"),
    ],
)
def test_what_the_log_would_have_quarantined_is_refused(name, value, message):
    found = refused(with_value(name, value))
    assert (found.path, found.message) == (f"candidates[1].{name}", f"cannot be scored: {message}")
    shared = {k: v for k, v in ROW.items() if k != name}
    found = refused(body(user={"user": 5, name: value}, candidates=[shared]))
    assert found.path == f"user.{name}"


def test_a_missing_column_is_named_with_the_places_it_may_stand_in():
    found = refused(body(user={}))
    assert found.path == "candidates[0].user"
    assert found.message == "is required (or user.user, context.user); send null if it is unknown"
    without = {k: v for k, v in ROW.items() if k != "tag"}
    assert refused(body(candidates=[ROW, without])).path == "candidates[1].tag"


@pytest.mark.parametrize(
    ("request_", "path", "message"),
    [
        (body(user={"user": None}), "user.user", "never null, found null"),
        (
            body(user={}, candidates=[{**ROW, "user": 5}, {**ROW, "user": None}]),
            "candidates[1].user",
            "never null, found null",
        ),
        (body(context={"at": None}), "context.at", "milliseconds since 1970-01-01 UTC, found null"),
        (body(context={"at": "noon"}), "context.at", 'since 1970-01-01 UTC, found "noon"'),
        (with_event(at=9), "histories.clicks[1].at", "event before it (10), found 9; send events"),
        (with_event(at=None), "histories.clicks[1].at", "milliseconds since 1970-01-01 UTC, found"),
        (with_event(colour=1), "histories.clicks[1].colour", "the columns are item, level, at"),
        (with_event(level="high"), "histories.clicks[1].level", "level is not a finite number"),
        (
            body(histories={"clicks": [{"item": 1, "level": None}]}),
            "histories.clicks[0].at",
            "is required; send null",
        ),
    ],
)  # fmt: skip
def test_users_and_times_are_never_unknown_and_events_are_in_order(request_, path, message):
    found = refused(request_)
    assert (found.path, message in found.message) == (path, True), found.message
