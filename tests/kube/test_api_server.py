"""The stub API server, asked by the official client: answers as the real server documents them."""

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, dynamic, watch
from kubernetes.dynamic import exceptions

from tests.kube.api_access import NOBODY
from tests.kube.api_faults import Fault
from tests.kube.api_server import TOKEN, ApiServer

Json = Any
RAY = ("ray.io", "v1", "default", "rayjobs")
POD = {"spec": {"containers": [{"name": "ray", "image": "example.com/ray:1"}]}}


def connect(server: ApiServer, folder: Path, token: str = TOKEN) -> Any:
    file = server.kubeconfig(folder / "kubeconfig", token=token)
    return config.new_client_from_config(str(file))


@pytest.fixture
def core(api: ApiServer, tmp_path: Path) -> Any:
    return client.CoreV1Api(connect(api, tmp_path))


@pytest.fixture
def ray(api_of_kuberay: ApiServer, tmp_path: Path) -> Any:
    return client.CustomObjectsApi(connect(api_of_kuberay, tmp_path))


def job(name: str = "one", **spec: Any) -> Json:
    group = {"groupName": "workers", "rayStartParams": {}, "template": POD}
    cluster = {
        "headGroupSpec": {"rayStartParams": {}, "template": POD},
        "workerGroupSpecs": [group],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {"entrypoint": "x", "rayClusterSpec": cluster, **spec},
    }


def settings(name: str = "settings", labels: Json = None, **data: str) -> Json:
    meta = {"name": name, "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def refused(call: Any, *args: Any, **options: Any) -> Json:
    with pytest.raises(client.ApiException) as caught:
        call(*args, **options)
    assert caught.value.body is not None
    status = json.loads(caught.value.body)
    assert status["code"] == caught.value.status
    return status


def test_the_definition_fills_in_its_defaults(ray: Any) -> None:
    made = ray.create_namespaced_custom_object(*RAY, job())
    group = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"], group["replicas"]) == (0, 2147483647, 0)
    assert made["metadata"]["generation"] == 1


def test_an_unknown_field_is_refused_or_pruned(ray: Any) -> None:
    body = job(entrypont="x")
    status = refused(ray.create_namespaced_custom_object, *RAY, body, field_validation="Strict")
    assert (status["code"], status["reason"]) == (400, "BadRequest")
    assert status["message"] == (
        'RayJob in version "v1" cannot be handled as a RayJob: strict decoding error: '
        'unknown field "spec.entrypont"'
    )
    made = ray.create_namespaced_custom_object(*RAY, body, field_validation="Ignore")
    assert "entrypont" not in made["spec"]


def test_a_field_of_1_7_is_unknown_to_1_6(
    ray: Any, definitions_1_7: list[Json], tmp_path: Path
) -> None:
    body = job()
    body["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["priority"] = 1
    status = refused(ray.create_namespaced_custom_object, *RAY, body, field_validation="Strict")
    assert 'unknown field "spec.rayClusterSpec.workerGroupSpecs[0].priority"' in status["message"]
    with ApiServer(definitions=definitions_1_7) as newer:
        api = client.CustomObjectsApi(connect(newer, tmp_path))
        api.create_namespaced_custom_object(*RAY, body, field_validation="Strict")


@pytest.mark.parametrize(
    ("spec", "field", "reason", "text"),
    [
        ({"backoffLimit": "two"}, "spec.backoffLimit", "FieldValueTypeInvalid", "of type integer"),
        (
            {"deletionStrategy": {"deletionRules": []}},
            "spec.deletionStrategy.deletionRules",
            "FieldValueInvalid",
            "should have at least 1 items",
        ),
        (
            {"deletionStrategy": {}},
            "spec.deletionStrategy",
            "FieldValueInvalid",
            "requires either BOTH onSuccess and onFailure",
        ),
        (
            {"managedBy": "me"},
            "spec.managedBy",
            "FieldValueInvalid",
            "must be either 'ray.io/kuberay-operator'",
        ),
        ({"rayClusterSpec": {}}, "spec.rayClusterSpec.headGroupSpec", "FieldValueRequired", "Req"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_path(
    ray: Any, spec: Json, field: str, reason: str, text: str
) -> None:
    status = refused(ray.create_namespaced_custom_object, *RAY, job(**spec))
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert status["message"].startswith('RayJob.ray.io "one" is invalid: ')
    cause = next(one for one in status["details"]["causes"] if one["field"] == field)
    assert cause["reason"] == reason
    assert text in cause["message"]


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "a" * 254])
def test_a_name_that_kubernetes_refuses(ray: Any, name: str) -> None:
    status = refused(ray.create_namespaced_custom_object, *RAY, job(name))
    assert (status["code"], status["details"]["causes"][0]["field"]) == (422, "metadata.name")


def test_what_is_not_there(ray: Any, core: Any) -> None:
    assert refused(ray.get_namespaced_custom_object, *RAY, "none") == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'rayjobs.ray.io "none" not found',
        "reason": "NotFound",
        "details": {"name": "none", "group": "ray.io", "kind": "rayjobs"},
        "code": 404,
    }
    status = refused(core.create_namespaced_config_map, "nowhere", settings())
    assert status["message"] == 'namespaces "nowhere" not found'
    # A kind that nobody serves has no Status.
    with pytest.raises(client.ApiException) as caught:
        client.CustomObjectsApi(core.api_client).list_namespaced_custom_object(*RAY)
    assert (caught.value.status, caught.value.body) == (404, "404 page not found\n")


def test_a_name_is_given_once_and_a_version_replaced_once(core: Any) -> None:
    made = core.create_namespaced_config_map("default", settings(word="one"))
    again = refused(core.create_namespaced_config_map, "default", settings())
    assert (again["code"], again["reason"]) == (409, "AlreadyExists")
    core.replace_namespaced_config_map("settings", "default", made)
    made.data = {"word": "two"}
    core.replace_namespaced_config_map("settings", "default", made)
    made.data = {"word": "three"}
    late = refused(core.replace_namespaced_config_map, "settings", "default", made)
    assert (late["code"], late["reason"]) == (409, "Conflict")
    assert "the object has been modified" in late["message"]


def test_the_status_is_written_at_its_own_address(ray: Any) -> None:
    made = ray.create_namespaced_custom_object(*RAY, {**job(), "status": {"jobId": "x"}})
    assert "status" not in made
    made["status"], made["spec"]["entrypoint"] = {"jobId": "x"}, "y"
    said = ray.replace_namespaced_custom_object_status(*RAY, "one", made)
    assert (said["status"]["jobId"], said["spec"]["entrypoint"]) == ("x", "x")
    assert said["metadata"]["generation"] == 1
    body = {"spec": {"suspend": True}, "status": {"jobId": "z"}}
    said = ray.patch_namespaced_custom_object(*RAY, "one", body)
    assert (said["status"]["jobId"], said["metadata"]["generation"]) == ("x", 2)


def test_lists_are_selected_and_paged(core: Any) -> None:
    for i in range(5):
        labels = {"half": "first" if i < 2 else "second", "n": str(i)}
        core.create_namespaced_config_map("default", settings(f"c{i}", labels))
    for selector, count in {
        "half=first": 2,
        "half!=first": 3,
        "half in (first, second),n notin (0)": 4,
        "!half": 0,
        "half,n=3": 1,
    }.items():
        found = core.list_namespaced_config_map("default", label_selector=selector)
        assert len(found.items) == count, selector
    found = core.list_namespaced_config_map("default", field_selector="metadata.name=c3")
    assert [one.metadata.name for one in found.items] == ["c3"]
    status = refused(core.list_namespaced_config_map, "default", field_selector="data.word=one")
    assert status["message"] == "field label not supported: data.word"
    first = core.list_namespaced_config_map("default", limit=3)
    rest = core.list_namespaced_config_map("default", limit=3, _continue=first.metadata._continue)
    assert [one.metadata.name for one in first.items + rest.items] == [f"c{i}" for i in range(5)]


def test_a_watch_begins_at_a_version_and_follows_its_selector(api: ApiServer, core: Any) -> None:
    version = core.list_namespaced_config_map("default").metadata.resource_version
    core.create_namespaced_config_map("default", settings(labels={"mine": "yes"}))
    core.create_namespaced_config_map("default", settings("other"))
    body = {"metadata": {"labels": {"mine": "no"}}}
    core.patch_namespaced_config_map("settings", "default", body)
    stream = watch.Watch().stream(
        core.list_namespaced_config_map,
        "default",
        label_selector="mine=yes",
        resource_version=version,
        timeout_seconds=1,
    )
    assert [event["type"] for event in stream if isinstance(event, dict)] == ["ADDED", "DELETED"]
    api.store.expire()
    with pytest.raises(client.ApiException, match=r"Expired: too old resource version"):
        list(
            watch.Watch().stream(
                core.list_namespaced_config_map, "default", resource_version=version
            )
        )


def test_patches_of_four_kinds(api: ApiServer, core: Any, tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **POD}
    core.create_namespaced_pod("default", pod)
    pods = dynamic.DynamicClient(core.api_client).resources.get(api_version="v1", kind="Pod")
    body = {"spec": {"containers": [{"name": "ray", "image": "example.com/ray:2"}]}}
    for kind, image in {"strategic-merge": "2", "merge": "2"}.items():
        said = pods.patch(
            body, name="p", namespace="default", content_type=f"application/{kind}-patch+json"
        )
        assert said.spec.containers[0].image.endswith(image)
    step = [{"op": "replace", "path": "/spec/containers/0/image", "value": "z"}]
    said = pods.patch(
        step, name="p", namespace="default", content_type="application/json-patch+json"
    )
    assert said.spec.containers[0].image == "z"
    wrong = [{"op": "test", "path": "/spec/containers/0/image", "value": "y"}]
    assert refused(lambda: core.patch_namespaced_pod("p", "default", wrong))["code"] == 422


def test_a_custom_resource_knows_no_strategic_merge(ray: Any) -> None:
    ray.create_namespaced_custom_object(*RAY, job())
    jobs = dynamic.DynamicClient(ray.api_client).resources.get(
        api_version="ray.io/v1", kind="RayJob"
    )
    with pytest.raises(exceptions.DynamicApiError, match="415"):  # the default
        jobs.patch({"spec": {"suspend": True}}, name="one", namespace="default")


def test_apply_owns_fields_and_gives_them_back(core: Any) -> None:
    maps = dynamic.DynamicClient(core.api_client).resources.get(api_version="v1", kind="ConfigMap")

    def apply(manager: str, force: bool = False, **data: str) -> Any:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}
        return maps.server_side_apply(
            body, name="c", namespace="default", field_manager=manager, force_conflicts=force
        )

    apply("helm", a="1", b="1")
    apply("other", c="1")
    assert apply("helm", a="2").data.to_dict() == {"a": "2", "c": "1"}
    with pytest.raises(exceptions.ConflictError) as caught:
        apply("other", a="3", c="1")
    status = json.loads(caught.value.body)
    assert status["message"] == 'Apply failed with 1 conflict: conflict with "helm": .data.a'
    assert status["details"]["causes"][0]["reason"] == "FieldManagerConflict"
    assert apply("other", True, a="3", c="1").data.to_dict() == {"a": "3", "c": "1"}
    # Now it is the other's: what helm lets go of stays.
    assert apply("helm").data.to_dict() == {"a": "3", "c": "1"}


def test_dependents_go_with_their_owner(api: ApiServer, core: Any) -> None:
    owner = core.create_namespaced_config_map("default", settings("owner"))

    def owned(name: str, uid: str) -> None:
        about = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
        body = settings(name)
        body["metadata"]["ownerReferences"] = [about | {"blockOwnerDeletion": True}]
        core.create_namespaced_config_map("default", body)

    def wait(names: list[str]) -> None:
        until = api.clock.now() + 5
        assert api.clock.wait(lambda: api.objects() == [f"ConfigMap/{n}" for n in names], until)

    owned("first", owner.metadata.uid)
    owned("stranger", "00000000-0000-0000-0000-000000000000")  # its owner is not there
    wait(["first", "owner"])
    core.delete_namespaced_config_map("owner", "default", propagation_policy="Orphan")
    wait(["first"])
    owner = core.create_namespaced_config_map("default", settings("owner"))
    owned("second", owner.metadata.uid)
    core.delete_namespaced_config_map("owner", "default", propagation_policy="Foreground")
    wait(["first"])


def test_a_finalizer_holds_what_is_deleted(api: ApiServer, core: Any) -> None:
    body = settings()
    body["metadata"]["finalizers"] = ["example.com/hold"]
    core.create_namespaced_config_map("default", body)
    core.delete_namespaced_config_map("settings", "default")
    left = core.read_namespaced_config_map("settings", "default")
    assert left.metadata.deletion_timestamp is not None
    core.patch_namespaced_config_map("settings", "default", {"metadata": {"finalizers": None}})
    assert api.objects() == []


def test_a_token_may_what_roles_say(api: ApiServer, core: Any, tmp_path: Path) -> None:
    rbac = "rbac.authorization.k8s.io"
    meta = {"name": "reader"}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    subject = {"kind": "ServiceAccount", "name": "steps", "namespace": "default"}
    ref = {"apiGroup": rbac, "kind": "Role", "name": "reader"}
    of = {"apiVersion": f"{rbac}/v1", "metadata": meta}
    api.create({**of, "kind": "Role", "rules": rules})
    api.create({**of, "kind": "RoleBinding", "subjects": [subject], "roleRef": ref})
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "steps"}})
    token = core.create_namespaced_service_account_token("steps", "default", {"spec": {}})
    steps = client.CoreV1Api(connect(api, tmp_path, token.status.token))
    steps.list_namespaced_config_map("default")
    status = refused(steps.delete_namespaced_config_map, "settings", "default")
    assert (status["code"], status["reason"]) == (403, "Forbidden")
    assert status["message"] == (
        'configmaps "settings" is forbidden: User "system:serviceaccount:default:steps" cannot '
        'delete resource "configmaps" in API group "" in the namespace "default"'
    )
    status = refused(steps.list_namespaced_pod, "kube-system")
    assert 'cannot list resource "pods" in API group "" in the namespace' in status["message"]
    api.expire(token.status.token)
    assert refused(steps.list_namespaced_config_map, "default")["message"] == "Unauthorized"
    api.access.anonymous = NOBODY
    nobody = client.CoreV1Api(client.ApiClient(client.Configuration(host=api.url)))
    assert 'User "system:anonymous" cannot list' in refused(nobody.list_node)["message"]


def test_faults_strike_as_they_were_told(api: ApiServer, core: Any) -> None:
    core.api_client.rest_client.pool_manager.connection_pool_kw["retries"] = False
    api.faults.add(Fault(500, "GET", "/configmaps", skip=1))
    core.list_namespaced_config_map("default")
    assert refused(core.list_namespaced_config_map, "default")["reason"] == "InternalError"
    api.faults.add(Fault("lose", "POST", "/configmaps"))
    with pytest.raises(Exception, match="Connection aborted|closed connection"):
        core.create_namespaced_config_map("default", settings())
    assert api.objects() == ["ConfigMap/settings"]
    api.faults.add(Fault("drop", "DELETE"))
    with pytest.raises(Exception, match="Connection aborted|closed connection"):
        core.delete_namespaced_config_map("settings", "default")
    assert api.objects() == ["ConfigMap/settings"]


def test_a_dry_run_changes_nothing(api: ApiServer, core: Any) -> None:
    core.create_namespaced_config_map("default", settings(), dry_run="All")
    assert api.objects() == []
    core.create_namespaced_config_map("default", settings(word="one"))
    said = core.patch_namespaced_config_map(
        "settings", "default", {"data": {"word": "two"}}, dry_run="All"
    )
    assert said.data == {"word": "two"}
    core.delete_namespaced_config_map("settings", "default", dry_run="All")
    assert core.read_namespaced_config_map("settings", "default").data == {"word": "one"}
