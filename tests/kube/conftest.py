"""The simulated cluster, or with `-m kube` the real one of $KUBECONFIG."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube import kuberay_definitions, real_cluster
from tests.kube.api_server import ApiServer
from tests.kube.real_cluster import RealCluster
from tests.kube.simulated import Simulated, simulated

Json = Any


@pytest.fixture(scope="session")
def kuberay_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := kuberay_definitions.missing():
        pytest.skip(why)
    cache = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    return tmp_path_factory.mktemp("kuberay") if cache is None else cache.mkdir("kuberay")


@pytest.fixture(scope="session")
def definitions_1_7(kuberay_cache: Path) -> list[Json]:
    return kuberay_definitions.read("1.7", kuberay_cache)


@pytest.fixture(scope="session")
def definitions_1_6(kuberay_cache: Path) -> list[Json]:
    return kuberay_definitions.read("1.6.1", kuberay_cache)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """An API server without custom resources, in real time."""
    with ApiServer() as server:
        yield server
        assert not server.failures


@pytest.fixture
def api_of_kuberay(definitions_1_6: list[Json]) -> Iterator[ApiServer]:
    """An API server that serves KubeRay 1.6.1's kinds, in real time, without its operator."""
    with ApiServer(definitions=definitions_1_6) as server:
        yield server
        assert not server.failures


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.kube)])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulated | RealCluster]:
    """A cluster with KubeRay, KUBECONFIG set to it: simulated, and with `-m kube` the real one."""
    if request.param == "simulated":
        definitions = request.getfixturevalue("definitions_1_6")
        with simulated(definitions, place=str(tmp_path)) as found:
            kubeconfig = found.server.kubeconfig(tmp_path / "kubeconfig")
            monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
            yield found
        return
    selected = str(request.config.getoption("markexpr"))
    if "kube" not in selected or "not kube" in selected:
        pytest.skip("the cluster of KUBECONFIG is used with `-m kube` only")
    if why := real_cluster.missing():
        pytest.skip(why)
    found = RealCluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig))
    with found.open():
        yield found
