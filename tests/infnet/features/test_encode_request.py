import pyarrow as pa
import pytest
from feature_log import training_rows

from infnet.features.request import encode_request
from rayrun.config import ConfigError

HOUR_MS = 3_600_000
READ = ["item", "tag", "number", "shown", "clicked", "steps", "past"]
NOT_IN_REQUESTS = ["row_id", "weight", "y.click", "y.spend"]


def events_of(encoder, log: pa.Table, user: int, behaviour: str) -> list[dict]:
    """What a client knows of a user: all training rows of the behaviour."""
    rows = training_rows(log)
    demand = encoder.demands().histories[behaviour]
    holds = demand.where.holds(rows) if demand.where else [True] * rows.num_rows
    kept = rows.filter(pa.array(holds)).select([*demand.columns, "user", "at"]).to_pylist()
    return [event for event in kept if event["user"] == user]


@pytest.fixture
def ask(encoder, log):
    def asked(row: dict, **changes) -> pa.Table:
        request = {
            "user": {"user": row["user"]},
            "context": {"at": row["at"]},
            "histories": {b: events_of(encoder, log, row["user"], b) for b in ("clicks", "seen")},
            "candidates": [{c: row[c] for c in READ}],
        }
        return encode_request(encoder, **{**request, **changes})

    return asked


def test_a_served_row_is_encoded_like_the_row_of_the_log(encoder, log, later, ask):
    expected = encoder.encode(later).drop_columns(NOT_IN_REQUESTS)
    raw = log.slice(training_rows(log).num_rows).to_pylist()
    for at, row in enumerate(raw):
        assert ask(row).drop_columns(NOT_IN_REQUESTS).equals(expected.slice(at, 1)), at


def test_candidates_keep_their_order_and_do_not_see_each_other(log, ask):
    rows = [{c: r[c] for c in READ} for r in log.slice(200, 6).to_pylist()]
    first = log.slice(200, 1).to_pylist()[0]
    together = ask(first, candidates=rows)
    assert together["row_id"].to_pylist() == list(range(6))
    for at, row in enumerate(rows):
        alone = ask(first, candidates=[row])
        assert together.slice(at, 1).drop_columns("row_id").equals(alone.drop_columns("row_id"))


def test_events_at_or_after_the_candidate_are_not_seen(log, ask):
    row = log.slice(220, 1).to_pylist()[0]
    past = [{"item": i, "number": 1.0, "at": row["at"] - i * HOUR_MS} for i in (3, 2, 1)]
    future = [{"item": 9, "number": 1.0, "at": row["at"] + ms} for ms in (0, 1, HOUR_MS)]
    before = ask(row, histories={"clicks": past})
    assert ask(row, histories={"clicks": [*future, *past]}).equals(before)
    assert before["s.clicks.ages"].to_pylist() == [pytest.approx([3 / 24, 2 / 24, 1 / 24])]


def test_the_most_recent_events_are_kept_in_order_of_time(log, ask):
    row = log.slice(220, 1).to_pylist()[0]
    events = [{"item": i, "number": 1.0, "at": row["at"] - i} for i in (5, 1, 4, 2, 6, 3)]
    recent = [{"item": i, "number": 1.0, "at": row["at"] - i} for i in (4, 3, 2, 1)]
    assert ask(row, histories={"clicks": events}).equals(ask(row, histories={"clicks": recent}))


def test_a_behaviour_left_out_has_no_events(log, ask):
    found = ask(log.slice(220, 1).to_pylist()[0], histories={})
    assert found["s.clicks.ages"].to_pylist() == found["s.seen.ages"].to_pylist() == [[]]


def test_candidates_win_over_context_and_context_over_user(log, ask):
    row = log.slice(220, 1).to_pylist()[0]
    user = {"user": row["user"], "tag": "a", "shown": 1}
    candidate = {c: row[c] for c in READ} | {"shown": 4}
    found = ask(row, user=user, candidates=[candidate])
    assert found.equals(ask(row, candidates=[candidate]))


def test_no_candidates_give_no_rows(log, ask):
    assert ask(log.slice(220, 1).to_pylist()[0], candidates=[]).num_rows == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": {}}, r"candidates\[0\]\.user is required \(or user\.user, context\.user\)"),
        ({"user": {"user": None}}, r"candidates\[0\]\.user must not be null"),
        ({"context": {}}, r"candidates\[0\]\.at is required"),
        ({"context": {"at": None}}, r"candidates\[0\]\.at must not be null"),
        ({"context": {"at": "noon"}}, r"candidates\[0\]\.at must be of type int64, found 'noon'"),
        (
            {"candidates": [{c: None for c in READ}, {**dict.fromkeys(READ), "item": "x"}]},
            r"candidates\[1\]\.item must be of type int64, found 'x'",
        ),
        (
            {"candidates": [{**dict.fromkeys(READ), "number": True}]},
            r"candidates\[0\]\.number must be of type double, found True",
        ),
        (
            {"candidates": [{**dict.fromkeys(READ), "steps": [1, 2, 3, 4, True]}]},
            r"candidates\[0\]\.steps must be of type list.* found \[1, 2, 3, 4, True\]",
        ),
        ({"candidates": [{"item": 1}]}, r"candidates\[0\]\.\w+ is required.*send null if unknown"),
        (
            {"histories": {"clikcs": []}},
            r"histories\.clikcs is unknown; the behaviours are clicks, seen",
        ),
        (
            {"histories": {"clicks": [{"item": 1, "at": 1}]}},
            r"histories\.clicks\[0\]\.number is required; send null if unknown",
        ),
        (
            {"histories": {"clicks": [{"item": 1, "number": 1.0, "at": None}]}},
            r"histories\.clicks\[0\]\.at must be a time, found None",
        ),
        (
            {"histories": {"clicks": [{"item": 1, "number": "many", "at": 1}]}},
            r"histories\.clicks\[0\]\.number must be of type double, found 'many'",
        ),
    ],
)
def test_a_bad_request_names_the_field(log, ask, changes, message):
    with pytest.raises(ConfigError, match=message):
        ask(log.slice(220, 1).to_pylist()[0], **changes)
