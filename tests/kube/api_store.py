"""Objects of the stub API server: resource versions, a history for watches, deletion and its collector.

Stored objects are never changed, only replaced: who reads one may keep it. All calls hold the clock's
lock, so that a request and a controller never meet in the middle of a change.
"""

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.api_answers import ApiError, already_exists, conflict, not_found
from tests.kube.api_apply import Owner
from tests.kube.api_resources import Resource, Resources
from tests.kube.clocks import Clock

Json = Any
Key = tuple[str, str]
Name = tuple[str, str]

KEPT = 5000
"""Changes that a watch can begin at."""
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


def copied(thing: Json) -> Json:
    """A copy of JSON; several times faster than copy.deepcopy."""
    return json.loads(json.dumps(thing))


def timestamp(at: float) -> str:
    """Seconds since 1970 as metav1.Time writes them."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


@dataclass(frozen=True)
class Change:
    """One change of one object, for watches."""

    version: int
    key: Key
    kind: str
    thing: Json
    before: Json


class Store:
    """All objects of one cluster."""

    def __init__(self, clock: Clock, resources: Resources, seed: int = 0) -> None:
        self.clock = clock
        self.resources = resources
        self.version = 1000
        self.compacted = 0
        """Watches cannot begin before this version any more."""
        self.history: list[Change] = []
        self.owners: dict[str, list[Owner]] = {}
        """Owners of fields, by uid, of objects that were applied."""
        self.listeners: list[Callable[[Change], None]] = []
        self.collect_s = 0.2
        """How long the garbage collector takes to notice."""
        self.stop_pod_s = 1.0
        """How long a pod on a node takes to end, at most its grace period."""
        self._things: dict[Key, dict[Name, Json]] = {}
        self._random = random.Random(seed)
        self._collecting = False

    def uid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def now(self) -> str:
        return timestamp(self.clock.now())

    def find(self, key: Key, namespace: str, name: str) -> Json:
        """The stored object, not to be changed; None where there is none."""
        return self._things.get(key, {}).get((namespace, name))

    def get(self, key: Key, namespace: str, name: str) -> Json:
        """The stored object, not to be changed.

        Raises:
            ApiError: 404.
        """
        thing = self.find(key, namespace, name)
        if thing is None:
            raise not_found(key[0], key[1], name)
        return thing

    def of(self, key: Key, namespace: str = "") -> list[Json]:
        """Of a namespace or of all, in order of their names."""
        things = self._things.get(key, {})
        names = sorted(name for name in things if not namespace or name[0] == namespace)
        return [things[name] for name in names]

    def all(self) -> Iterator[tuple[Key, Json]]:
        for key, things in list(self._things.items()):
            for thing in list(things.values()):
                yield key, thing

    def create(self, resource: Resource, thing: Json) -> Json:
        """Store a new object; its metadata is completed here.

        Raises:
            ApiError: 409, the name is taken.
        """
        with self.clock.lock:
            meta = thing["metadata"]
            if not meta.get("name") and (prefix := meta.get("generateName")):
                meta["name"] = prefix + "".join(
                    self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5)
                )
            name = (meta.get("namespace", ""), meta["name"])
            if self.find(resource.key, *name) is not None:
                raise already_exists(resource.group, resource.plural, meta["name"])
            meta |= {"uid": self.uid(), "creationTimestamp": self.now(), "generation": 1}
            if not resource.custom and "spec" not in thing:
                del meta["generation"]
            meta.pop("deletionTimestamp", None)
            stored = self._put(resource.key, "ADDED", thing, None)
            if meta.get("ownerReferences"):
                self.collect_soon()
            return stored

    def update(self, key: Key, thing: Json) -> Json:
        """Replace an object; an update that changes nothing makes no new version.

        Raises:
            ApiError: 404; 409, `metadata.resourceVersion` or `metadata.uid` is another.
        """
        with self.clock.lock:
            meta = thing["metadata"]
            before = self.get(key, meta.get("namespace", ""), meta["name"])
            there = before["metadata"]
            if meta.get("uid", there["uid"]) != there["uid"]:
                why = (
                    f"Precondition failed: UID in precondition: {meta['uid']}, "
                    f"UID in object meta: {there['uid']}"
                )
                raise conflict(*key, meta["name"], why)
            if meta.get("resourceVersion") not in (None, "", there["resourceVersion"]):
                raise conflict(*key, meta["name"])
            for fixed in ("uid", "creationTimestamp", "deletionTimestamp", "resourceVersion"):
                meta.pop(fixed, None)
                if fixed in there:
                    meta[fixed] = there[fixed]
            meta.pop("managedFields", None)
            if "generation" in there:
                parts = [
                    {k: v for k, v in one.items() if k not in ("metadata", "status", "apiVersion")}
                    for one in (before, thing)
                ]
                meta["generation"] = there["generation"] + (parts[0] != parts[1])
            if thing == before:
                return before
            stored = self._put(key, "MODIFIED", thing, before)
            if "deletionTimestamp" in meta and not meta.get("finalizers"):
                if key != ("", "pods") or not meta.get("deletionGracePeriodSeconds"):
                    self.remove(key, *self._name(stored))
            elif there.get("ownerReferences") != meta.get("ownerReferences"):
                self.collect_soon()
            return stored

    def edit(self, key: Key, namespace: str, name: str, change: Callable[[Json], None]) -> Json:
        """Change a copy of an object and store it; for controllers."""
        with self.clock.lock:
            thing = copied(self.get(key, namespace, name))
            change(thing)
            return self.update(key, thing)

    def delete(
        self,
        key: Key,
        namespace: str,
        name: str,
        policy: str = "Background",
        grace: int | None = None,
    ) -> Json:
        """Delete an object, or mark it where finalizers or a node come first; returns it as it was."""
        with self.clock.lock:
            before = self.get(key, namespace, name)
            pod = key == ("", "pods")
            if "deletionTimestamp" in before["metadata"] and not (pod and grace == 0):
                return before
            thing = copied(before)
            meta = thing["metadata"]
            holds = {"Foreground": [FOREGROUND], "Orphan": [ORPHAN]}.get(policy, [])
            finalizers = [*(meta.get("finalizers") or ()), *holds]
            seconds = 0
            if pod and grace != 0 and thing.get("spec", {}).get("nodeName"):
                seconds = grace or thing["spec"].get("terminationGracePeriodSeconds", 30)
            if not finalizers and not seconds:
                self.remove(key, namespace, name)
                return before
            meta["finalizers"] = finalizers
            if not finalizers:
                del meta["finalizers"]
            meta.setdefault("deletionTimestamp", timestamp(self.clock.now() + seconds))
            meta["deletionGracePeriodSeconds"] = seconds
            stored = self._put(key, "MODIFIED", thing, before)
            if seconds:
                self._stop_later(namespace, name, meta["uid"], seconds)
            self.collect_soon()
            return stored

    def remove(self, key: Key, namespace: str, name: str) -> None:
        """Take an object out at once."""
        with self.clock.lock:
            thing = self._things[key].pop((namespace, name))
            self.owners.pop(thing["metadata"]["uid"], None)
            self.version += 1
            gone = copied(thing)
            gone["metadata"]["resourceVersion"] = str(self.version)
            self._record(Change(self.version, key, "DELETED", gone, thing))
            self.collect_soon()

    def expire(self) -> None:
        """Forget the history: watches from before now are told 410."""
        with self.clock.lock:
            self.version += 1
            self.compacted = self.version
            self.history.clear()

    def changes(self, key: Key, after: int) -> list[Change]:
        """Of one kind, after a version."""
        found: list[Change] = []
        for change in reversed(self.history):
            if change.version <= after:
                break
            if change.key == key:
                found.append(change)
        return found[::-1]

    def collect_soon(self) -> None:
        if not self._collecting:
            self._collecting = True
            self.clock.call_at(self.clock.now() + self.collect_s, self._collect)

    def _name(self, thing: Json) -> Name:
        return thing["metadata"].get("namespace", ""), thing["metadata"]["name"]

    def _put(self, key: Key, kind: str, thing: Json, before: Json) -> Json:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._things.setdefault(key, {})[self._name(thing)] = thing
        self._record(Change(self.version, key, kind, thing, before))
        return thing

    def _record(self, change: Change) -> None:
        self.history.append(change)
        if len(self.history) > KEPT:
            self.compacted = self.history[0].version
            del self.history[: KEPT // 10]
        for listener in self.listeners:
            listener(change)
        self.clock.changed()

    def _stop_later(self, namespace: str, name: str, uid: str, seconds: int) -> None:
        def stop() -> None:
            pod = self.find(("", "pods"), namespace, name)
            if pod is None or pod["metadata"]["uid"] != uid:
                return
            if pod["metadata"].get("finalizers"):
                self.edit(
                    ("", "pods"),
                    namespace,
                    name,
                    lambda p: p["metadata"].update(deletionGracePeriodSeconds=0),
                )
            else:
                self.remove(("", "pods"), namespace, name)

        self.clock.call_at(self.clock.now() + min(self.stop_pod_s, seconds), stop)

    def _collect(self) -> None:
        """One round of the garbage collector and of the namespace controller."""
        with self.clock.lock:
            self._collecting = False
            things = list(self.all())
            there = {thing["metadata"]["uid"]: thing for _, thing in things}
            for key, thing in things:
                owners = thing["metadata"].get("ownerReferences") or []
                if "deletionTimestamp" in thing["metadata"] or not owners:
                    continue
                live = [owner for owner in owners if self._owns(owner, thing, there)]
                if not live and self._known(owners):
                    self._try_delete(key, thing)
            for key, thing in things:
                if "deletionTimestamp" in thing["metadata"]:
                    self._finish(key, thing, things)

    def _owns(self, owner: Json, thing: Json, there: dict[str, Json]) -> bool:
        found = there.get(owner["uid"])
        if found is None or found["kind"] != owner["kind"]:
            return False
        meta = found["metadata"]
        if meta.get("namespace", "") not in ("", thing["metadata"].get("namespace", "")):
            return False
        going = FOREGROUND in (meta.get("finalizers") or ()) and "deletionTimestamp" in meta
        return not going

    def _known(self, owners: list[Json]) -> bool:
        """Owners of kinds that nobody serves cannot be looked up: nothing is collected."""
        return all(self.resources.of_kind(o["apiVersion"], o["kind"]) for o in owners)

    def _try_delete(self, key: Key, thing: Json) -> None:
        if self.find(key, *self._name(thing)) is not None:
            self.delete(key, *self._name(thing))

    def _finish(self, key: Key, thing: Json, things: list[tuple[Key, Json]]) -> None:
        """What waits for dependents, or for a namespace to be empty."""
        thing = self.find(key, *self._name(thing))
        if thing is None:
            return
        uid, finalizers = thing["metadata"]["uid"], thing["metadata"].get("finalizers") or []
        if key == ("", "namespaces"):
            self._empty(thing["metadata"]["name"])
        owned = [
            (k, t)
            for k, t in self.all()
            if any(o["uid"] == uid for o in t["metadata"].get("ownerReferences") or ())
        ]
        if ORPHAN in finalizers:
            for k, t in owned:
                self.edit(k, *self._name(t), lambda one: _disown(one, uid))
            self._drop_finalizer(key, thing, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = [
                t
                for _, t in owned
                if any(
                    o["uid"] == uid and o.get("blockOwnerDeletion")
                    for o in t["metadata"]["ownerReferences"]
                )
            ]
            if not blocking:
                self._drop_finalizer(key, thing, FOREGROUND)

    def _drop_finalizer(self, key: Key, thing: Json, finalizer: str) -> None:
        def drop(one: Json) -> None:
            left = [f for f in one["metadata"]["finalizers"] if f != finalizer]
            one["metadata"]["finalizers"] = left
            if not left:
                del one["metadata"]["finalizers"]

        self.edit(key, *self._name(thing), drop)

    def _empty(self, namespace: str) -> None:
        within = [(k, t) for k, t in self.all() if t["metadata"].get("namespace") == namespace]
        for key, thing in within:
            if "deletionTimestamp" not in thing["metadata"]:
                self._try_delete(key, thing)
        if not any(t["metadata"].get("namespace") == namespace for _, t in self.all()):
            thing = self.get(("", "namespaces"), "", namespace)
            self._drop_finalizer(("", "namespaces"), thing, "kubernetes")


def _disown(thing: Json, uid: str) -> None:
    kept = [o for o in thing["metadata"]["ownerReferences"] if o["uid"] != uid]
    thing["metadata"]["ownerReferences"] = kept
    if not kept:
        del thing["metadata"]["ownerReferences"]


def quota_exceeded(plural: str, name: str, quota: str) -> ApiError:
    """403 of a ResourceQuota; `quota` is the part after its name."""
    text = f'{plural} "{name}" is forbidden: exceeded quota: {quota}'
    return ApiError(403, text, details={"name": name, "kind": plural})
