"""A request body, checked and read: bytes in, items of the catalogue out, or one readable refusal.

    {"history": [items], "k": 10, "exclude": [items], "candidates": [items]}

An item is the id of the source or the title, as a string; {"item": id} and {"title": title} say
which. Only {"title": …} may name an item that the catalogue does not have: it is read by its text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layer_select.serve.config import RecommenderServe
from rayrun.data.columns import nearest
from rayrun.data.sequences import clean_title
from rayrun.ray.body import RequestError, cut, decode, refuse_twice, shown

FIELDS = ("history", "k", "exclude", "candidates")
NEW = -1
"""Number of an item that the catalogue does not have."""
FORMS = 'an item id or a title in quotation marks, {"item": id} or {"title": title}'


@dataclass(frozen=True)
class Item:
    """An item of the catalogue by its `number`, or a new one (`NEW`) by its title."""

    number: int
    title: str


@dataclass(frozen=True)
class Request:
    """A request that can be answered."""

    history: Sequence[Item]
    """Oldest first, at least one."""
    k: int
    excluded: frozenset[int]
    """Numbers of items that are not to be recommended."""
    candidates: Sequence[Item] | None
    """What is to be ranked, excluded items left out; None: the catalogue."""


class RequestReader:
    """Reads request bodies for one catalogue. Holds nothing of a request."""

    def __init__(
        self, items: Sequence[str], titles: Sequence[str], options: RecommenderServe
    ) -> None:
        """The catalogue: id and title of every item."""
        self._ids = {item: number for number, item in enumerate(items)}
        self._titles = titles
        self._by_title = {title: number for number, title in enumerate(titles)}
        self._options = options

    def read(self, body: bytes) -> Request:
        """One body.

        Raises:
            RequestError: 422 with the path of the first field that is wrong, 413 for a history that
                is too long.
        """
        parts = decode(body)
        if type(parts) is not dict:
            raise RequestError(
                422, "", f"the body must be an object with {', '.join(FIELDS)}, found "
                f"{shown(parts)}"
            )  # fmt: skip
        for name in parts:
            if name not in FIELDS:
                known = f"is unknown{nearest(cut(name), FIELDS)}; a request holds "
                raise RequestError(422, cut(name), known + ", ".join(FIELDS))
        for name in ("history", "k"):
            if name not in parts:
                what = "items, oldest first" if name == "history" else "how many items to recommend"
                raise RequestError(422, name, f"is required: {what}")
        lists = [_list(name, parts[name]) for name in FIELDS if name != "k" and name in parts]
        objects = [parts, *(one for values in lists for one in values if type(one) is dict)]
        refuse_twice(body, sum(map(len, objects)))
        history = self._history(parts["history"])
        excluded = frozenset(
            item.number for item in self._items("exclude", parts.get("exclude", []), self._known)
        )
        candidates = self._candidates(parts["candidates"]) if "candidates" in parts else None
        available = len(self._titles) - len(excluded)
        if candidates is not None:
            candidates = [item for item in candidates if item.number not in excluded]
            available = len(candidates)
        return Request(history, self._k(parts["k"], available), excluded, candidates)

    def _history(self, values: list[Any]) -> list[Item]:
        most = self._options.max_history_items
        if not values:
            raise RequestError(422, "history", "must hold at least one item, found an empty array")
        if len(values) > most:
            raise RequestError(
                413,
                "history",
                f"must hold at most {most:,} items, found {len(values):,}; send the latest ones, "
                "or raise serve.max_history_items",
            )
        return self._items("history", values, self._named)

    def _candidates(self, values: list[Any]) -> list[Item]:
        most = self._options.max_candidates
        if not 1 <= len(values) <= most:
            raise RequestError(
                422, "candidates", f"must hold 1 to {most:,} items, found {len(values):,}; leave "
                "the field out to rank the catalogue"
            )  # fmt: skip
        found = self._items("candidates", values, self._named)
        first: dict[Item, int] = {}
        for at, item in enumerate(found):
            if (before := first.setdefault(item, at)) != at:
                raise RequestError(
                    422, f"candidates[{at}]", f"is the item of candidates[{before}]; send it once"
                )
        return found

    def _k(self, value: Any, available: int) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not 1 <= value <= available:
            what = f"an integer from 1 to {available}" if available else "less: nothing is left"
            raise RequestError(
                422, "k", f"must be {what} (what can be recommended, without the excluded), found "
                f"{shown(value)}"
            )  # fmt: skip
        return value

    def _items(self, where: str, values: list[Any], read: Callable[[str, Any], Item]) -> list[Item]:
        return [read(f"{where}[{at}]", value) for at, value in enumerate(values)]

    def _known(self, path: str, value: Any) -> Item:
        item = self._named(path, value)
        if item.number == NEW:
            raise RequestError(
                422, path, f"the catalogue has no title {shown(item.title)}; there is nothing to "
                "exclude"
            )  # fmt: skip
        return item

    def _named(self, path: str, value: Any) -> Item:
        if type(value) is str:
            number = self._ids.get(value)
            if number is None:
                number = self._by_title.get(clean_title(value))
            if number is None:
                raise RequestError(
                    422, path, f"the catalogue has no item and no title {shown(value)}; send a new "
                    'item as {"title": title}'
                )  # fmt: skip
            return Item(number, self._titles[number])
        if type(value) is not dict or value.keys() not in ({"item"}, {"title"}):
            found = shown(value)
            if type(value) is dict:
                found = "an object with " + (", ".join(cut(key) for key in value) or "no fields")
            raise RequestError(422, path, f"must be {FORMS}; found {found}")
        ((kind, name),) = value.items()
        if type(name) is not str:
            raise RequestError(422, f"{path}.{kind}", f"must be text, found {shown(name)}")
        return self._by_id(path, name) if kind == "item" else self._titled(path, name)

    def _by_id(self, path: str, name: str) -> Item:
        number = self._ids.get(name)
        if number is None:
            raise RequestError(422, f"{path}.item", f"the catalogue has no item {shown(name)}")
        return Item(number, self._titles[number])

    def _titled(self, path: str, name: str) -> Item:
        title = clean_title(name)
        if not title:
            raise RequestError(422, f"{path}.title", "must hold a word, found an empty title")
        return Item(self._by_title.get(title, NEW), title)


def _list(name: str, value: Any) -> list[Any]:
    if type(value) is not list:
        raise RequestError(422, name, f"must be an array of items, found {shown(value)}")
    return value
