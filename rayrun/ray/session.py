"""Open Ray for a `Compute`, and close only what was opened here."""

import contextlib
import importlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError
from rayrun.ray.compute import AttachedCompute, Compute, KubeRayCompute, LocalCompute

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon reports and deaths are noticed
    "RAY_prestart_worker_first_driver": "0",  # an idle process per CPU that Train does not take
}

EXIT_S = 5.0
"""How long processes of a local instance may take to end after it."""

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray gives to the command of a job, and to it alone."""

STARTS = 3
LATE = "timed out during startup"
"""What Ray says of a start that took longer than its fixed 30 s; tried `STARTS` times in all."""

CONNECT_S = 10.0
"""How long an attached cluster may take to accept a connection."""


@contextlib.contextmanager
def session(compute: Compute) -> Generator[None]:
    """Ray is open inside the block.

    A Ray that is open already is used as it is and stays open: verbs that call each other, and
    notebooks, share one. `local` starts an instance of our own, never one that happens to run on
    the host, with a private temporary directory that is removed with it. `attached` connects to a
    cluster and leaves it running. The command of a Ray job uses the cluster that runs it, whatever
    `compute` says: what the job was sent is known to that cluster only.

    Raises:
        ConfigError: the workers need more than a local instance has, no cluster answers at the
            address, or `compute` takes jobs only (a dashboard, KubeRay).
    """
    ray: Any = importlib.import_module("ray")

    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    temporary: Path | None = None
    try:
        with _sigterm_kept():
            if isinstance(compute, KubeRayCompute):
                raise ConfigError(
                    "compute: {type: kuberay} runs verbs as jobs and deploys services; this one "
                    "runs here: set compute: {type: local}, or attached with the address of a "
                    "Ray cluster, HOST:PORT"
                )
            if isinstance(compute, AttachedCompute):
                _attach(compute.address)
            elif os.environ.get(IN_A_JOB):
                warnings.warn(
                    "this is a Ray job: it uses the cluster that runs it, as with compute: "
                    "{type: attached, address: auto}, and starts no Ray of its own",
                    stacklevel=1,
                )
                _attach("auto")
            else:
                # A short name under the system's directory: paths of Unix sockets end at 107 bytes.
                temporary = Path(tempfile.mkdtemp(prefix="r"))
                _start(compute, temporary)
        yield
    finally:
        ray.shutdown()
        if temporary is not None:
            _end_stragglers(temporary)
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _sigterm_kept() -> Generator[None]:
    """Ray takes SIGTERM for itself: it leaves by `sys.exit`, and aborts three seconds later.

    A handler of ours is put back; where there is none, Ray's stays, which ends its processes.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        yield
    except SystemExit:
        signal.alarm(0)  # the one that would abort
        raise KeyboardInterrupt from None
    finally:
        if callable(before):
            signal.signal(signal.SIGTERM, before)


def available_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_local(compute: LocalCompute) -> int:
    """CPUs that a local Ray counts on, after checking that all workers fit.

    Raises:
        ConfigError: they do not, and Ray would wait for ever.
    """
    num_cpus = available_cpus() if compute.num_cpus is None else compute.num_cpus
    needed = compute.workers * compute.cpus_per_worker
    if needed > num_cpus:
        raise ConfigError(
            f"compute.workers × compute.cpus_per_worker ({compute.workers} × "
            f"{compute.cpus_per_worker:g} = {needed:g}) needs more CPUs than there are "
            f"({num_cpus}); lower one of them, or set "
            f"compute.num_cpus to {needed:g} to let the workers share CPUs"
        )
    return num_cpus


def _start(compute: LocalCompute, temporary: Path) -> None:
    ray: Any = importlib.import_module("ray")

    num_cpus = check_local(compute)
    for left in reversed(range(STARTS)):
        try:
            with _temporary_files_in(temporary):
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    object_store_memory=compute.object_store_bytes,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _temp_dir=str(temporary),
                )
            break
        except ValueError as error:
            raise ConfigError(f"compute: Ray does not start on this machine: {error}") from error
        except Exception as error:  # Ray raises no narrower one
            if LATE not in str(error) or not left:
                raise
            warnings.warn("Ray did not start within 30 s on this busy machine; again", stacklevel=2)
            _end_stragglers(temporary)
    have = ray.cluster_resources().get("GPU", 0)
    if (needed := compute.workers * compute.gpus_per_worker) > have:
        raise ConfigError(
            f"compute.workers × compute.gpus_per_worker ({compute.workers} × "
            f"{compute.gpus_per_worker:g} = {needed:g}) needs more GPUs than there are ({have:g})"
        )


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Generator[None]:
    """Processes started inside the block put their temporary files there, so that those of a
    worker that was killed go with the session.
    """
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _end_stragglers(folder: Path) -> None:
    """Kill what is left of our instance: a worker of Ray may hang in its exit and outlive it.

    Ours are the processes that have the private folder as their temporary directory.
    """
    until = time.monotonic() + EXIT_S
    while (left := _processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _processes_of(folder: Path) -> list[int]:
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*/environ"):  # nothing where there is no /proc
        try:
            if f"TMPDIR={folder}".encode() in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def _attach(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"compute.address ({address}) is a dashboard, which takes verbs as jobs; this one runs "
            "here, where Ray needs the address of the cluster itself, HOST:PORT (often port 6379), "
            "or compute: {type: local}"
        )
    ray: Any = importlib.import_module("ray")
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"compute.address ({address}): no Ray cluster answers ({reason}); start one, correct "
            "the address, or use compute: {type: local}"
        ) from error


def _knock(address: str) -> None:
    """Whether anybody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
