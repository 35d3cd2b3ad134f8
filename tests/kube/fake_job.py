"""RayJobs of the simulated operator: the state machine of KubeRay 1.6.1's rayjob_controller.go.

HTTPMode only. The names of the states, what is checked in which order, and when the status is written
are the operator's; tests/kube/README.md lists what is left out.
"""

import calendar
import time
from typing import Any

from tests.kube.api_answers import ApiError
from tests.kube.api_store import copied, timestamp
from tests.kube.fake_cluster import CLUSTERS, SERVICES, FakeClusters, owner
from tests.kube.fake_dashboard import ENDED
from tests.kube.fake_kubelet import Recorder

Json = Any

JOBS = ("ray.io", "rayjobs")
FINALIZER = "ray.io/rayjob-finalizer"
POLL_S = 3.0
"""Between two rounds of one job."""
MOST_NAME = 47
IMPACT = {"DeleteSelf": 4, "DeleteCluster": 3, "DeleteWorkers": 2, "DeleteNone": 1}


def seconds(text: str) -> float:
    """Of a metav1.Time."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def problem(job: Json) -> str:
    """What ValidateRayJobMetadata and ValidateRayJobSpec have against a job."""
    spec, name = job["spec"], job["metadata"]["name"]
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules")
    start = "The RayJob spec is invalid: "
    if len(name) > MOST_NAME:
        return f"The RayJob metadata is invalid: RayJob name should be no more than {MOST_NAME} characters"
    if not name[0].isalpha() or "." in name:
        return "The RayJob metadata is invalid: RayJob name should be a valid DNS1035 label"
    shuts = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shuts:
        return (
            f"{start}a RayJob with shutdownAfterJobFinishes set to false is not allowed to be "
            "suspended"
        )
    if not shuts and spec.get("ttlSecondsAfterFinished", 0) > 0:
        return (
            f"{start}a RayJob with shutdownAfterJobFinishes set to false cannot have "
            "TTLSecondsAfterFinished"
        )
    if rules and shuts:
        return (
            f"{start}spec.shutdownAfterJobFinishes and spec.deletionStrategy.deletionRules are "
            "mutually exclusive"
        )
    if not spec.get("rayClusterSpec"):
        return f"{start}one of RayClusterSpec or ClusterSelector must be set"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if field in spec and spec[field] <= 0:
            return f"{start}{field} must be a positive integer"
    return ""


class FakeJobs:
    """What the operator does for RayJobs."""

    def __init__(self, clusters: FakeClusters) -> None:
        self.clusters = clusters
        self.server = clusters.server
        self.store = clusters.store
        self.clock = clusters.clock
        self.recorder = Recorder(self.server, "rayjob-controller")

    def reconcile(self, namespace: str, name: str) -> float | None:
        """One round; says after how many seconds the next one is wanted."""
        job = self.store.find(JOBS, namespace, name)
        if job is None:
            return None
        if "deletionTimestamp" in job["metadata"]:
            return self._being_deleted(job)
        job = copied(job)
        before = copied(job.get("status") or {})
        status = job.setdefault("status", {})
        if why := problem(job):
            status |= {
                "jobDeploymentStatus": "ValidationFailed",
                "reason": "ValidationFailed",
                "message": why,
            }
            self.recorder.say(job, "Warning", "InvalidRayJobSpec", f"{namespace}/{name}: {why}")
            self._write(job, before)
            return None
        state = status.get("jobDeploymentStatus", "")
        if state in ("Complete", "Failed"):
            return self._finished(job)
        if state == "ValidationFailed":
            return None
        if state == "Suspended":
            if job["spec"].get("suspend"):
                return None
            status |= {"jobDeploymentStatus": "", "jobStatus": ""}
        else:
            step = {
                "": self._new,
                "Initializing": self._initializing,
                "Running": self._running,
                "Suspending": self._releasing,
                "Retrying": self._releasing,
            }[state]
            if not step(job):
                return POLL_S
        self._count(job)
        self._write(job, before)
        return POLL_S

    # ------------------------------------------------------------------------------------

    def _new(self, job: Json) -> bool:
        meta, status = job["metadata"], job["status"]
        if FINALIZER not in (meta.get("finalizers") or ()):

            def hold(one: Json) -> None:
                one["metadata"].setdefault("finalizers", []).append(FINALIZER)

            stored = self.store.edit(JOBS, meta["namespace"], meta["name"], hold)
            job["metadata"] = copied(stored["metadata"])
        suffix = self.store.uid()[:5]
        status["jobId"] = status.get("jobId") or job["spec"].get("jobId") or (
            f"{meta['name']}-{suffix}"
        )  # fmt: skip
        status["rayClusterName"] = status.get("rayClusterName") or f"{meta['name']}-{suffix}"
        status |= {"jobDeploymentStatus": "Initializing", "startTime": self.store.now()}
        return True

    def _initializing(self, job: Json) -> bool:
        status = job["status"]
        if self._to_suspend(job) or self._too_late(
            job, "activeDeadlineSeconds", "DeadlineExceeded"
        ):
            return True
        if self._too_late(job, "preRunningDeadlineSeconds", "PreRunningDeadlineExceeded"):
            return True
        cluster = self._cluster(job)
        if (cluster.get("status") or {}).get("state") != "ready":
            status["rayClusterStatus"] = copied(cluster.get("status") or {})
            return True
        meta = cluster["metadata"]
        address = f"{meta['name']}-head-svc.{meta['namespace']}.svc.cluster.local:8265"
        status |= {"dashboardURL": address, "jobDeploymentStatus": "Running"}
        return True

    def _running(self, job: Json) -> bool:
        status, now = job["status"], self.clock.now()
        if self._to_suspend(job) or self._too_late(
            job, "activeDeadlineSeconds", "DeadlineExceeded"
        ):
            return True
        cluster = self._cluster(job)
        self._service(job, cluster)
        head = self.clusters.head_of(job["metadata"]["namespace"], cluster["metadata"]["name"])
        if head is None:
            return False
        found = head.jobs.get(status["jobId"])
        if found is None:
            request = {
                "entrypoint": job["spec"].get("entrypoint", ""),
                "submission_id": status["jobId"],
                "metadata": job["spec"].get("metadata") or {},
                "runtime_env": {"yaml": job["spec"].get("runtimeEnvYAML", "")},
            }
            head.submit(request)
            return False
        info = found.info(now)
        status |= {
            "rayClusterStatus": copied(cluster.get("status") or {}),
            "jobStatus": info["status"],
            "message": info["message"],
            "reason": "",
            "rayJobInfo": {"startTime": timestamp(info["start_time"] / 1000)},
        }
        if info["end_time"]:
            status["rayJobInfo"]["endTime"] = timestamp(info["end_time"] / 1000)
        if info["status"] in ENDED:
            failed = info["status"] == "FAILED"
            status["jobDeploymentStatus"] = "Failed" if failed else "Complete"
            status["reason"] = "AppFailed" if failed else ""
        return True

    def _releasing(self, job: Json) -> bool:
        """Suspending or Retrying: on once the cluster is gone."""
        if not self._delete_cluster(job):
            return False
        status = job["status"]
        after = {"Suspending": "Suspended", "Retrying": ""}[status["jobDeploymentStatus"]]
        for field in ("rayClusterName", "dashboardURL", "jobId", "message", "reason"):
            status.pop(field, None)
        status |= {
            "rayClusterStatus": {},
            "rayJobInfo": {},
            "jobStatus": "",
            "jobDeploymentStatus": after,
        }
        return True

    def _finished(self, job: Json) -> float | None:
        spec, status, now = job["spec"], job["status"], self.clock.now()
        ended = seconds(status["endTime"])
        rules = (spec.get("deletionStrategy") or {}).get("deletionRules")
        if rules:
            matched = [rule for rule in rules if _matches(rule, status)]
            due = [r for r in matched if now >= ended + r["condition"].get("ttlSeconds", 0)]
            due = [r for r in due if not self._done(job, r["policy"])]
            if due:
                worst = max(due, key=lambda rule: IMPACT[rule["policy"]])
                self._carry_out(job, worst["policy"])
            later = [ended + r["condition"].get("ttlSeconds", 0) for r in matched]
            later = [at for at in later if at > now]
            return min(later) - now + 2.0 if later else None
        if spec.get("shutdownAfterJobFinishes"):
            at = ended + spec.get("ttlSecondsAfterFinished", 0)
            if at > now:
                return at - now + 2.0
            self._delete_cluster(job)
        return None

    def _being_deleted(self, job: Json) -> float | None:
        meta, status = job["metadata"], job.get("status") or {}
        if FINALIZER not in (meta.get("finalizers") or ()):
            return None
        if status.get("jobStatus") not in ENDED:
            space = meta["namespace"]
            head = self.clusters.head_of(space, status.get("rayClusterName", ""))
            if head is not None and status.get("jobId") in head.jobs:
                head.stop(status["jobId"])

        def release(one: Json) -> None:
            left = [f for f in one["metadata"]["finalizers"] if f != FINALIZER]
            one["metadata"]["finalizers"] = left
            if not left:
                del one["metadata"]["finalizers"]

        self.store.edit(JOBS, meta["namespace"], meta["name"], release)
        return None

    def _to_suspend(self, job: Json) -> bool:
        if job["spec"].get("suspend"):
            job["status"]["jobDeploymentStatus"] = "Suspending"
            return True
        return False

    def _too_late(self, job: Json, field: str, reason: str) -> bool:
        spec, status = job["spec"], job["status"]
        if field not in spec or self.clock.now() < seconds(status["startTime"]) + spec[field]:
            return False
        shown = field[0].upper() + field[1:]
        status |= {
            "jobDeploymentStatus": "Failed",
            "reason": reason,
            "message": f"The RayJob has passed the {field}. StartTime: {status['startTime']}. "
            f"{shown}: {spec[field]}",
        }
        return True

    def _count(self, job: Json) -> None:
        """checkBackoffLimitAndUpdateStatusIfNeeded."""
        spec, status = job["spec"], job["status"]
        failed = status.get("failed", 0) + (status["jobDeploymentStatus"] == "Failed")
        complete = status["jobDeploymentStatus"] == "Complete"
        done = complete and status.get("jobStatus") == "SUCCEEDED"
        status |= {"failed": failed, "succeeded": status.get("succeeded", 0) + done}
        again = failed < spec.get("backoffLimit", 0) + 1
        late = status.get("reason") == "DeadlineExceeded"
        if status["jobDeploymentStatus"] == "Failed" and again and not late:
            status["jobDeploymentStatus"] = "Retrying"

    def _write(self, job: Json, before: Json) -> None:
        """The status is written only with another state, or another state of the cluster."""
        status = job["status"]
        watched = ("jobStatus", "jobDeploymentStatus")
        same = all(status.get(key, "") == before.get(key, "") for key in watched)
        of_cluster = ("state", "reason", "conditions", "head", "readyWorkerReplicas")
        then, now = before.get("rayClusterStatus") or {}, status.get("rayClusterStatus") or {}
        if same and all(then.get(key) == now.get(key) for key in of_cluster):
            return
        if status["jobDeploymentStatus"] in ("Complete", "Failed"):
            status["endTime"] = self.store.now()
        meta = job["metadata"]
        kept = {key: value for key, value in status.items() if value not in ("", None)}
        self.server.set_status("ray.io/v1/rayjobs", meta["namespace"], meta["name"], kept)

    def _cluster(self, job: Json) -> Json:
        meta = job["metadata"]
        name = job["status"]["rayClusterName"]
        found = self.store.find(CLUSTERS, meta["namespace"], name)
        if found is not None:
            return found
        cluster = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": {
                    **(meta.get("labels") or {}),
                    "ray.io/job-submission-mode": job["spec"].get("submissionMode", "K8sJobMode"),
                    "ray.io/originated-from-cr-name": meta["name"],
                    "ray.io/originated-from-crd": "RayJob",
                },
                "annotations": dict(meta.get("annotations") or {}),
                "ownerReferences": owner(job),
            },
            "spec": copied(job["spec"]["rayClusterSpec"]),
        }
        if self.clusters.plan.slow_delete_s:
            cluster["metadata"]["finalizers"] = ["slow.example.com/hold"]
        made = self.server.create(cluster)
        text = f"Created RayCluster {meta['namespace']}/{name}"
        self.recorder.say(job, "Normal", "CreatedRayCluster", text)
        return made

    def _service(self, job: Json, cluster: Json) -> None:
        meta, name = job["metadata"], f"{job['metadata']['name']}-head-svc"
        wanted = cluster["metadata"]["name"]
        found = self.store.find(SERVICES, meta["namespace"], name)
        service = self.clusters.head_service(job, name, wanted)
        if found is None:
            self.server.create(service)
            text = f"Created the service {meta['namespace']}/{name}"
            self.recorder.say(job, "Normal", "CreatedService", text)
        elif found["spec"]["selector"]["ray.io/cluster"] != wanted:
            selector = service["spec"]["selector"]
            self.store.edit(
                SERVICES, meta["namespace"], name, lambda one: one["spec"].update(selector=selector)
            )

    def _delete_cluster(self, job: Json) -> bool:
        """Whether it is gone; else its deletion has begun."""
        space, name = job["metadata"]["namespace"], job["status"].get("rayClusterName", "")
        found = self.store.find(CLUSTERS, space, name)
        if found is None:
            return True
        if "deletionTimestamp" not in found["metadata"]:
            self.store.delete(CLUSTERS, space, name)
            text = f"Deleted cluster {space}/{name}"
            self.recorder.say(job, "Normal", "DeletedRayCluster", text)
        return False

    def _done(self, job: Json, policy: str) -> bool:
        space, name = job["metadata"]["namespace"], job["status"].get("rayClusterName", "")
        cluster = self.store.find(CLUSTERS, space, name)
        if policy in ("DeleteCluster", "DeleteWorkers") and (
            cluster is None or "deletionTimestamp" in cluster["metadata"]
        ):
            return True
        if policy == "DeleteWorkers":
            return all(g.get("suspend") for g in cluster["spec"].get("workerGroupSpecs") or ())
        return policy == "DeleteNone"

    def _carry_out(self, job: Json, policy: str) -> None:
        meta = job["metadata"]
        if policy == "DeleteCluster":
            self._delete_cluster(job)
        elif policy == "DeleteSelf":
            try:
                self.store.delete(JOBS, meta["namespace"], meta["name"])
            except ApiError:
                return
        elif policy == "DeleteWorkers":

            def suspend(one: Json) -> None:
                for group in one["spec"].get("workerGroupSpecs") or ():
                    group["suspend"] = True

            self.store.edit(CLUSTERS, meta["namespace"], job["status"]["rayClusterName"], suspend)


def _matches(rule: Json, status: Json) -> bool:
    when = rule["condition"]
    if "jobStatus" in when:
        return when["jobStatus"] == status.get("jobStatus")
    return when["jobDeploymentStatus"] == status["jobDeploymentStatus"]
