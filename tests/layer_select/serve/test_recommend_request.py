"""What a request may say, and how every other one is refused."""

import json

import pytest

from layer_select.serve.config import RecommenderServe
from layer_select.serve.request import NEW, Item, RequestReader
from rayrun.ray.body import RequestError

ITEMS = ["a1", "a2", "300", "a4"]
TITLES = ["Go", "象棋", "Zoo", "300"]
OPTIONS = RecommenderServe(max_history_items=5, max_candidates=3)
READER = RequestReader(ITEMS, TITLES, OPTIONS)


def read(**fields):
    return READER.read(json.dumps(fields).encode())


def test_items_are_named_by_id_or_title_mixed():
    request = read(history=["a1", "象棋", {"title": "Zoo"}, {"item": "a4"}], k=2)
    assert [item.number for item in request.history] == [0, 1, 2, 3]
    assert [item.title for item in request.history] == TITLES
    assert (request.k, request.excluded, request.candidates) == (2, frozenset(), None)


def test_what_is_an_id_and_a_title_is_the_id_unless_it_says_otherwise():
    request = read(history=["300", {"title": "300"}], k=1)
    assert [item.number for item in request.history] == [2, 3]


def test_titles_are_normalised_as_in_the_catalogue_and_new_ones_are_kept_by_their_text():
    request = read(
        history=["  象棋\n", {"title": " Go \t"}, {"title": "Brand\x1fnew\x00 one"}], k=1
    )
    assert request.history == [Item(1, "象棋"), Item(0, "Go"), Item(NEW, "Brand new\x00 one")]


def test_excluded_items_are_no_candidates():
    fields = {"history": ["a1"], "exclude": ["Go", {"item": "a2"}], "k": 2}
    assert read(**fields).excluded == {0, 1}
    request = read(**fields, candidates=["a2", "a4", {"title": "New"}])
    assert request.candidates == [Item(3, "300"), Item(NEW, "New")]


@pytest.mark.parametrize(
    ("fields", "status", "path", "message"),
    [
        ({"k": 1}, 422, "history", "is required: items, oldest first"),
        ({"history": ["a1"]}, 422, "k", "is required: how many items"),
        ({"history": [], "k": 1}, 422, "history", "at least one item, found an empty array"),
        ({"history": "a1", "k": 1}, 422, "history", 'must be an array of items, found "a1"'),
        ({"history": {"item": "a1"}, "k": 1}, 422, "history", "must be an array of items"),
        ({"history": ["a1", 7], "k": 1}, 422, "history[1]", "must be an item id or a title"),
        ({"history": ["a1", None], "k": 1}, 422, "history[1]", "found null"),
        ({"history": [["a1"]], "k": 1}, 422, "history[0]", "found an array of 1"),
        ({"history": ["a1", "b9"], "k": 1}, 422, "history[1]", 'no item and no title "b9"'),
        ({"history": [{"item": "b9"}], "k": 1}, 422, "history[0].item", 'has no item "b9"'),
        ({"history": [{"item": 300}], "k": 1}, 422, "history[0].item", "must be text, found 300"),
        ({"history": [{"title": True}], "k": 1}, 422, "history[0].title", "must be text"),
        ({"history": [{"title": " \n\t"}], "k": 1}, 422, "history[0].title", "an empty title"),
        ({"history": [{"id": "a1"}], "k": 1}, 422, "history[0]", "found an object with id"),
        ({"history": [{}], "k": 1}, 422, "history[0]", "found an object with no fields"),
        ({"history": ["a1"] * 6, "k": 1}, 413, "history", "at most 5 items, found 6"),
        ({"history": ["a1"], "k": 0}, 422, "k", "an integer from 1 to 4"),
        ({"history": ["a1"], "k": 5}, 422, "k", "an integer from 1 to 4"),
        ({"history": ["a1"], "k": -1}, 422, "k", "an integer from 1 to 4"),
        ({"history": ["a1"], "k": "2"}, 422, "k", 'an integer from 1 to 4 .* found "2"'),
        ({"history": ["a1"], "k": True}, 422, "k", "found true"),
        ({"history": ["a1"], "k": 1.5}, 422, "k", "found 1.5"),
        ({"history": ["a1"], "k": 4, "exclude": ["a2"]}, 422, "k", "an integer from 1 to 3"),
        ({"history": ["a1"], "k": 1, "exclude": ITEMS}, 422, "k", "nothing is left"),
        ({"history": ["a1"], "k": 1, "exclude": ["b9"]}, 422, "exclude[0]", 'no title "b9"'),
        (
            {"history": ["a1"], "k": 1, "exclude": [{"title": "New"}]},
            422,
            "exclude[0]",
            'has no title "New"; there is nothing to exclude',
        ),
        ({"history": ["a1"], "k": 1, "candidates": []}, 422, "candidates", "1 to 3 items, found 0"),
        ({"history": ["a1"], "k": 1, "candidates": ITEMS}, 422, "candidates", "1 to 3 .* found 4"),
        (
            {"history": ["a1"], "k": 1, "candidates": ["b9"]},
            422,
            "candidates[0]",
            "send a new item",
        ),
        (
            {"history": ["a1"], "k": 1, "candidates": ["a1", "Go"]},
            422,
            "candidates[1]",
            r"is the item of candidates\[0\]; send it once",
        ),
        ({"history": ["a1"], "k": 2, "candidates": ["a1"]}, 422, "k", "an integer from 1 to 1"),
        ({"history": ["a1"], "k": 1, "hist": []}, 422, "hist", "is unknown"),
    ],
)
def test_a_bad_request_is_refused_with_the_path_of_its_field(fields, status, path, message):
    with pytest.raises(RequestError, match=message) as refused:
        read(**fields)
    assert (refused.value.status, refused.value.path) == (status, path)


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        (b"", "", "it is empty"),
        (b"[1]", "", "the body must be an object with history, k, exclude, candidates"),
        (b'{"history": ["a1"], "k": NaN}', "", "NaN is no JSON number"),
        (b'{"history": ["\\ud800"], "k": 1}', "", "the body must be JSON in UTF-8"),
        (b'{"history": ["\xff"], "k": 1}', "", "the body must be JSON in UTF-8"),
        (b'{"k": 1, "history": ["a1"], "k": 2}', "k", "stands twice"),
        (b'{"k": 1, "history": [{"item": "a1", "item": "a2"}]}', "item", "stands twice"),
    ],
)
def test_a_body_that_is_no_plain_json_is_refused(body, path, message):
    with pytest.raises(RequestError, match=message) as refused:
        READER.read(body)
    assert (refused.value.status, refused.value.path) == (422, path)
