"""A bundle goes live as an application of a RayService: made, or updated in place.

The RayService holds one application, or several that name the same `compute.service`. What changes
in an application alone is changed in place, what changes in the pods (the image) starts a second
cluster beside the first; KubeRay moves over when all of it runs. What is live answers until then.
"""

import json
from typing import Any, cast

from rayrun import storage, yaml12
from rayrun.config import ConfigError, Json
from rayrun.kube.api import RAY, Api, Refused, part
from rayrun.kube.clock import Clock
from rayrun.kube.names import NAME_LENGTH, OURS
from rayrun.kube.pods import Task, cluster_spec, mount_of
from rayrun.kube.proxied import ServiceProxy
from rayrun.kube.refusals import explained
from rayrun.kube.trouble import Watched
from rayrun.ray.compute import KubeRayCompute
from rayrun.ray.declared import ELSEWHERE
from rayrun.ray.request import say
from rayrun.ray.serve import reason_of
from rayrun.ray.serve_options import ServeOptions

RAYSERVICES = "rayservices.ray.io"
PORT = 8000
POLL_S = 2.0
PODS_S = 10.0
FAILED_S = 20.0
"""How long an application must have failed: what is told may be of the version before."""
STUCK_S = 60.0
CONFLICTS = 5
START_S = 1800.0
"""How long pods may take where compute.start_deadline_s says nothing."""
HELM = "Helm"


class Deployment:
    """One application of one RayService."""

    def __init__(
        self,
        program: str,
        name: str,
        *,
        bundle: str,
        digest: str,
        compute: KubeRayCompute,
        options: ServeOptions,
    ) -> None:
        """Nothing is asked.

        Args:
            program: `infnet` or `layer-select`.
            name: of the application.
            bundle: its place.
            digest: of the model, as the answer names it.
            compute: the cluster of the service.
            options: of the application.

        Raises:
            ConfigError: a name that is too long, a bundle that pods do not reach, replicas that do
                not fit the workers.
        """
        self.program, self.application = program, name
        self.bundle, self.digest = bundle, digest
        self.compute, self.options = compute, options
        self.name = compute.service or name
        self._check()

    def entry(self) -> Json:
        """The application in `serveConfigV2`."""
        kept = {f"serve.{key}": value for key, value in self.options.to_dict().items()}
        keys = {key: value for key, value in kept.items() if key not in ELSEWHERE}
        return {
            "name": self.application,
            "import_path": f"{self.program.replace('-', '_')}.serve.application:build",
            "route_prefix": self.options.route_prefix,
            "args": {
                "bundle": self.bundle,
                "model": self.digest,
                "route_prefix": self.options.route_prefix,
                "set": keys,
            },
        }

    def manifest(self, live: Json | None = None, namespace: str = "") -> Json:
        """The RayService with this application, beside the others that are `live`."""
        serve: Json = {
            "proxy_location": "EveryNode",
            "http_options": {"host": "0.0.0.0", "port": PORT},
            "logging_config": {"log_level": "WARNING", "enable_access_log": False},
            "applications": [],
        }
        if live is not None:
            serve |= cast(
                Json, yaml12.parse(str(part(live, "spec").get("serveConfigV2")), where="")
            )
        others = [one for one in serve["applications"] if one["name"] != self.application]
        for other in others:
            if other.get("route_prefix") == self.options.route_prefix:
                raise ConfigError(
                    f"serve.route_prefix ({self.options.route_prefix}) is that of the application "
                    f"{other['name']!r} of the RayService {self.name}; give {self.application!r} "
                    f"another one, or set serve.application to {other['name']!r} to replace it"
                )
        serve["applications"] = sorted([*others, self.entry()], key=lambda one: str(one["name"]))
        proxy = "0" if self.options.ingress == "python" else "1"
        env = {"RAY_SERVE_ENABLE_HA_PROXY": proxy, **self.compute.env}
        compute = self.compute.model_copy(update={"env": env})
        labels = {**OURS, "infnet-ray/service": self.name}
        metadata: Json = {"name": self.name, "labels": labels}
        if namespace:
            metadata["namespace"] = namespace
        return {
            "apiVersion": RAY,
            "kind": "RayService",
            "metadata": metadata,
            "spec": {
                "serveConfigV2": yaml12.dump(serve),
                "rayClusterConfig": cluster_spec(compute, labels, Task.of(), serves=True),
            },
        }

    def put_up(self, clock: Clock | None = None) -> tuple[str, bool]:
        """Make or update the RayService, and return when this version of the application answers.

        Returns:
            The URL of the application inside the cluster, and whether one of its name was live.

        Raises:
            ConfigError: Helm manages the RayService, Kubernetes refuses it, its pods cannot start,
                the application fails or does not answer in time. An update that fails is undone.
        """
        api = Api(context=self.compute.context, namespace=self.compute.namespace, clock=clock)
        before, now = self._apply(api)
        replaced = before is not None and self.application in applications(before)
        try:
            _Waiting(api, self, now).until_it_answers()
        except ConfigError as error:
            if before is None:
                undo = f"kubectl delete rayservice {self.name} --namespace {api.namespace}"
                raise ConfigError(f"{error}\n  it is still there; remove it by: {undo}") from error
            undone = self._undo(api, before, now)
            raise ConfigError(f"{error}\n  {undone}") from error
        return self.url(api.namespace), replaced

    def url(self, namespace: str) -> str:
        """Inside the cluster."""
        prefix = self.options.route_prefix.rstrip("/")
        return f"http://{self.name}-serve-svc.{namespace}.svc:{PORT}{prefix}"

    # -----------------------------------------------------------------------------------------

    def _apply(self, api: Api) -> tuple[Json | None, Json]:
        for _ in range(CONFLICTS):
            live = api.get(RAYSERVICES, self.name)
            if live is not None:
                self._check_ours(live, api)
            wanted = self.manifest(live, api.namespace)
            try:
                if live is None:
                    say(f"RayService {self.name} in {api.namespace}: is made")
                    return None, api.create(RAYSERVICES, wanted)
                version = {"resourceVersion": live["metadata"]["resourceVersion"]}
                spec = _changed(live, wanted["spec"])
                body = {"metadata": {**version, "labels": OURS}, "spec": spec}
                say(f"RayService {self.name} in {api.namespace}: is updated")
                return live, api.patch(RAYSERVICES, self.name, body)
            except Refused as refused:
                if refused.code != 409:
                    raise ConfigError(explained(refused, wanted, self.compute)) from None
        raise ConfigError(
            f"the RayService {self.name} is changed by somebody else all the time; find out by "
            f"whom: kubectl get rayservice {self.name} --namespace {api.namespace} "
            "--show-managed-fields -o yaml"
        )

    def _undo(self, api: Api, before: Json, after: Json) -> str:
        live = api.get(RAYSERVICES, self.name)
        made = after["metadata"].get("generation")
        if live is None or live["metadata"].get("generation") != made:
            return "somebody has changed the RayService since; it is left as it is"
        version = {"resourceVersion": live["metadata"]["resourceVersion"]}
        try:
            spec = _changed(live, part(before, "spec"))
            api.patch(RAYSERVICES, self.name, {"metadata": version, "spec": spec})
        except (ConfigError, Refused) as error:
            return f"the RayService could not be set back to what was live ({error})"
        return "the RayService was set back to what was live, which goes on answering"

    def _check_ours(self, live: Json, api: Api) -> None:
        labels, notes = part(live, "metadata", "labels"), part(live, "metadata", "annotations")
        release = str(notes.get("meta.helm.sh/release-name", ""))
        if labels.get("app.kubernetes.io/managed-by") == HELM or release:
            where = notes.get("meta.helm.sh/release-namespace") or api.namespace
            key = f"applications.{self.application}"
            raise ConfigError(
                f"the RayService {self.name} is managed by Helm and is not touched; put the bundle "
                f"live by: helm upgrade {release or 'RELEASE'} CHART --namespace {where} "
                f"--reuse-values --set {key}.bundle={self.bundle} --set {key}.model={self.digest}"
            )
        if labels.get("app.kubernetes.io/managed-by") != OURS["app.kubernetes.io/managed-by"]:
            raise ConfigError(
                f"there is a RayService {self.name} in {api.namespace} that is not ours; set "
                "compute.service to another name, or remove it"
            )

    def _check(self) -> None:
        if len(self.name) > NAME_LENGTH or not self.name[0].isalpha():
            raise ConfigError(
                f"compute.service must be a name of at most {NAME_LENGTH} characters that begins "
                f"with a letter, found {self.name} (from serve.application where it is empty)"
            )
        if self.compute.queue:
            raise ConfigError(
                f"compute.queue ({self.compute.queue}) is for jobs; a service would wait in it "
                "while it is updated: set compute.queue to ''"
            )
        local = storage.local_path(self.bundle)
        if local is not None and not mount_of(str(local), self.compute, Task.of().mounts):
            raise ConfigError(
                f"inputs.bundle must be s3://… or lie on a volume that all pods share, found "
                f"{self.bundle}; name the claim and where it is mounted under compute.volumes"
            )
        cpus = self.compute.workers * self.compute.cpus_per_worker
        if (needed := self.options.replicas * self.options.cpus_per_replica) > cpus:
            raise ConfigError(
                f"serve.replicas × serve.cpus_per_replica ({self.options.replicas} × "
                f"{self.options.cpus_per_replica:g} = {needed:g}) needs more CPUs than "
                f"compute.workers × compute.cpus_per_worker have ({cpus:g}); an update in place "
                "needs twice as many while it lasts"
            )


class _Waiting:
    def __init__(self, api: Api, wanted: Deployment, live: Json) -> None:
        self.api, self.wanted, self.live = api, wanted, live
        self.watched = Watched(api, wanted.compute)
        self.proxy = ServiceProxy(api, f"{wanted.name}-serve-svc", PORT)
        self.said: set[str] = set()
        self.failing: float | None = None
        self.stuck: float | None = None
        self.looked = float("-inf")

    def until_it_answers(self) -> None:
        compute, clock = self.wanted.compute, self.api.clock
        limit_s = (compute.start_deadline_s or START_S) + self.wanted.options.start_timeout_s
        until, live = clock.now() + limit_s, self.live
        while True:
            why = self.missing(live)
            if not why:
                return
            self.say(f"RayService {self.wanted.name}: {why}")
            if clock.now() >= until:
                raise ConfigError(
                    f"the application {self.wanted.application!r} does not answer after "
                    f"{limit_s:g} s ({why}); see the pods of the RayService {self.wanted.name}, or "
                    "raise compute.start_deadline_s"
                )
            self.check_pods(live)
            clock.sleep(POLL_S)
            found = self.api.get(RAYSERVICES, self.wanted.name)
            if found is None:
                raise ConfigError(f"the RayService {self.wanted.name} was removed by somebody")
            live = found

    def missing(self, live: Json) -> str:
        """What is waited for; empty: this version answers and all applications run."""
        status = part(live, "status")
        generation = int(live["metadata"].get("generation") or 0)
        if int(status.get("observedGeneration") or 0) < generation:
            return "KubeRay takes it up"
        pending = part(status, "pendingServiceStatus")
        if pending.get("rayClusterName"):
            self.check_failed(pending)
            return f"the cluster {pending['rayClusterName']} starts"
        states = part(status, "activeServiceStatus", "applicationStatuses")
        self.check_failed(part(status, "activeServiceStatus"))
        for name in applications(live):
            state = str(part(states, name).get("status") or "not there")
            if state != "RUNNING":
                return f"the application {name!r} is {state}"
        found = self.answer()
        if found != self.wanted.digest:
            return f"it answers with {found}" if found else "it does not answer"
        return ""

    def answer(self) -> str:
        """The digest of the model that answers; empty: none."""
        answer = self.proxy.get(f"{self.wanted.options.route_prefix.rstrip('/')}/healthz")
        try:
            told: Any = json.loads(answer.text) if answer is not None else None
        except ValueError:
            return ""
        return str(cast(Json, told).get("model") or "") if isinstance(told, dict) else ""

    def check_failed(self, service: Json) -> None:
        state = part(service, "applicationStatuses", self.wanted.application)
        if state.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"):
            self.failing = None
            return
        now = self.api.clock.now()
        self.failing = now if self.failing is None else self.failing
        if now - self.failing >= FAILED_S:
            deployments = part(state, "serveDeploymentStatuses").values()
            told = [str(state.get("message") or "")]
            told += [str(cast(Json, one).get("message") or "") for one in deployments]
            reason = reason_of("\n".join(told))
            raise ConfigError(
                f"the application {self.wanted.application!r} does not start: {reason}"
            )

    def check_pods(self, live: Json) -> None:
        now = self.api.clock.now()
        if now - self.looked < PODS_S:
            return
        self.looked = now
        status = part(live, "status")
        cluster = part(status, "pendingServiceStatus").get("rayClusterName") or (
            part(status, "activeServiceStatus").get("rayClusterName")
        )
        if not cluster:
            return
        found = self.watched.trouble(
            self.wanted.name, str(cluster), self.watched.pods(str(cluster))
        )
        if found is None or found.waits:
            self.stuck = None
            if found is not None:
                self.say(f"waiting: {found.text}")
            return
        self.stuck = now if self.stuck is None else self.stuck
        if now - self.stuck >= STUCK_S:
            raise ConfigError(found.text)

    def say(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            say(line)


def _changed(live: Json, spec: Json) -> Json:
    """What we say of a RayService; the rest of its spec is whoever's said it."""
    cluster = replacing(part(live, "spec", "rayClusterConfig"), part(spec, "rayClusterConfig"))
    return {"serveConfigV2": spec["serveConfigV2"], "rayClusterConfig": cluster}


def replacing(old: Json, new: Json) -> Json:
    """A merge patch that makes `old` to `new`: what is not there any more is null."""
    patch: Json = {name: None for name in old if name not in new}
    for name, value in new.items():
        was = old.get(name)
        both = isinstance(value, dict) and isinstance(was, dict)
        patch[name] = replacing(cast(Json, was), cast(Json, value)) if both else value
    return patch


def applications(service: Json) -> list[str]:
    """Names of the applications that a RayService is told to run."""
    text = str(part(service, "spec").get("serveConfigV2") or "applications: []")
    content = cast(Json, yaml12.parse(text, where="serveConfigV2"))
    return [str(one["name"]) for one in cast("list[Json]", content.get("applications") or [])]
