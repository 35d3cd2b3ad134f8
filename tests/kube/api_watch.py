"""Lists and watches: selectors, pages, resource versions that are too old, bookmarks."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.api_answers import ApiError, expired
from tests.kube.api_resources import Resource
from tests.kube.api_selectors import selects_fields, selects_labels
from tests.kube.api_store import Change, Store

Json = Any

LONGEST_S = 1800.0
"""How long a watch lives that names no time of its own."""
BOOKMARK_S = 60.0


def flag(query: dict[str, str], name: str) -> bool:
    """A truth value as Go reads one: Python's client writes `True`."""
    return query.get(name, "") in ("1", "t", "T", "true", "True", "TRUE")


@dataclass
class Wanted:
    """What a list or a watch asks for."""

    resource: Resource
    namespace: str
    query: dict[str, str]

    def fits(self, thing: Json) -> bool:
        if self.namespace and thing["metadata"].get("namespace") != self.namespace:
            return False
        if not selects_labels(self.query.get("labelSelector", ""), thing["metadata"].get("labels")):
            return False
        return selects_fields(self.query.get("fieldSelector", ""), self.resource.plural, thing)


Show = Callable[[Json], Json]


def listed(store: Store, wanted: Wanted, show: Show) -> Json:
    """A list of what is there now, or one page of it."""
    things = store.of(wanted.resource.key, wanted.namespace)
    items = [show(thing) for thing in things if wanted.fits(thing)]
    meta: dict[str, Json] = {"resourceVersion": str(store.version)}
    start = 0
    if token := wanted.query.get("continue"):
        version, start = json.loads(base64.urlsafe_b64decode(token))
        if version < store.compacted:
            raise ApiError(
                410,
                "The provided continue parameter is too old to display a consistent list result.",
            )
    limit = int(wanted.query.get("limit") or 0)
    if limit and len(items) > start + limit:
        token = base64.urlsafe_b64encode(json.dumps([store.version, start + limit]).encode())
        meta["continue"] = token.decode()
        meta["remainingItemCount"] = len(items) - start - limit
    items = items[start : start + limit] if limit else items[start:]
    if not wanted.resource.custom:
        # As the real server: items of built-in kinds do not repeat what the list says.
        items = [{k: v for k, v in i.items() if k not in ("apiVersion", "kind")} for i in items]
    return {
        "kind": f"{wanted.resource.kind}List",
        "apiVersion": wanted.resource.api_version,
        "metadata": meta,
        "items": items,
    }


def watched(store: Store, wanted: Wanted, show: Show) -> Iterator[Json]:
    """The events of a watch, to its end.

    On virtual time a watch ends after the events that came at one moment: its client then asks
    again, and time stands still while the client is at work.
    """
    clock, query = store.clock, wanted.query
    until = clock.now() + float(query.get("timeoutSeconds") or LONGEST_S)
    asked = query.get("resourceVersion", "")
    bookmarks = flag(query, "allowWatchBookmarks")
    with clock.lock:
        first: list[Json] = []
        at = int(asked or 0)
        initial = flag(query, "sendInitialEvents")
        if initial or asked in ("", "0"):
            at = store.version
            for thing in store.of(wanted.resource.key, wanted.namespace):
                if wanted.fits(thing):
                    first.append({"type": "ADDED", "object": show(thing)})
            if initial:
                first.append(_bookmark(wanted, at, {"k8s.io/initial-events-end": "true"}))
        elif at < store.compacted:
            error = expired(at, store.compacted).status
            first = [{"type": "ERROR", "object": error}]
    yield from first
    if first and (clock.virtual or first[0]["type"] == "ERROR"):
        return
    while True:

        def news(after: int = at) -> bool:
            return store.version > after and bool(_events(store, wanted, after, show))

        ready = clock.wait(news, min(until, clock.now() + BOOKMARK_S))
        with clock.lock:
            if at < store.compacted:
                yield {"type": "ERROR", "object": expired(at, store.compacted).status}
                return
            events = _events(store, wanted, at, show)
            at = store.version
        yield from events
        if not ready and bookmarks:
            yield _bookmark(wanted, at)
        if clock.now() >= until or (clock.virtual and events):
            return


def _bookmark(wanted: Wanted, version: int, annotations: Json = None) -> Json:
    meta: dict[str, Json] = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        meta["annotations"] = annotations
    thing = {
        "kind": wanted.resource.kind,
        "apiVersion": wanted.resource.api_version,
        "metadata": meta,
    }
    return {"type": "BOOKMARK", "object": thing}


def _events(store: Store, wanted: Wanted, after: int, show: Show) -> list[Json]:
    found: list[Json] = []
    for change in store.changes(wanted.resource.key, after):
        if kind := _kind(change, wanted):
            found.append({"type": kind, "object": show(change.thing)})
    return found


def _kind(change: Change, wanted: Wanted) -> str:
    """How a watch with a selector sees a change: what leaves its selection is deleted for it."""
    now = change.kind != "DELETED" and wanted.fits(change.thing)
    before = change.before is not None and wanted.fits(change.before)
    if now:
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else ""
