"""Run a train function on Ray Train: equal workers, checkpoints, restarts, and one result file of
rank 0.

The function sees a `Worker` and its argument, and returns plain data. Everything that must survive
lies under `<storage>/<name>`: checkpoints (the newest two), `progress.json`, and `result.json`, the
return value of rank 0. The name is fixed by the caller, so a driver that was killed and starts
again continues the same run.
"""

import contextlib
import importlib
import json
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.progress import progress
from rayrun.ray.compute import AttachedCompute, Compute
from rayrun.ray.process_group import Collectives, dist
from rayrun.ray.session import session
from rayrun.ray.worker import KEPT_CHECKPOINTS, Worker

RESULT = "result.json"
REFUSED = "refused.json"
PROGRESS = "progress.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Where Ray Train lists the checkpoints of a run that are complete."""
PROGRESS_EVERY_S = 1.0

PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's switch for a process of 200 MB that waits for nodes to be taken away."""

TrainFunction = Callable[[Worker, Json], Json]


def run(
    function: TrainFunction,
    argument: Json,
    *,
    compute: Compute,
    storage_path: str,
    name: str,
    max_failures: int = 0,
    title: str = "training",
    callbacks: Sequence[Any] = (),
) -> Json:
    """Run `function(worker, argument)` on `compute.workers` workers and return what rank 0
    returned.

    A worker that dies is replaced up to `max_failures` times: all workers start again and find the
    newest complete checkpoint in `worker.latest_checkpoint()`. `function` must be importable on the
    workers; `argument` and the result are JSON data. `storage_path` is a directory or an object
    store URI that all workers reach. `callbacks` are Ray Train's, on the driver.

    Raises:
        ConfigError: raised by the function (never tried again), or the workers cannot be placed.
        RuntimeError: the function failed more than `max_failures` times; the first worker's error
            follows.
    """
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )

    cloudpickle: Any = importlib.import_module("ray.cloudpickle")
    place = storage.join(storage_path, name)
    for stale in (RESULT, REFUSED):
        storage.remove(storage.join(place, stale))
    filesystem, path = storage.arrow_filesystem(storage_path)
    with session(compute):
        trainer = _trainer_class()(
            cast(Any, _on_worker),
            train_loop_config={
                # As bytes: the controller would import all of the function's room to hold it.
                "function": cloudpickle.dumps(function),
                "argument": argument,
                "place": place,
            },
            scaling_config=ScalingConfig(
                num_workers=_number(compute),
                use_gpu=compute.gpus_per_worker > 0,
                resources_per_worker=_resources(compute),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[*callbacks],
            ),
        )
        try:
            with _shown(storage.join(place, PROGRESS), title), _interruptible(), _watched(compute):
                trainer.fit()
        except TrainingFailedError as error:
            _raise_if_refused(place)
            _raise_if_told(error, place)
            reason = str(error).strip()
            raise RuntimeError(
                f"{title} failed more than max_failures ({max_failures}) times; checkpoints are in "
                f"{place}, the same command continues from the newest. {reason}"
            ) from error
    _raise_if_refused(place)
    return cast(Json, json.loads(storage.read_bytes(storage.join(place, RESULT))))


def _trainer_class() -> Any:
    """Ray's TorchTrainer without the process that would hand out the parts of Ray datasets, of
    which a function here is given none: at each start of the workers it would import Ray Train
    anew, two seconds of a core.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            every: list[Any] = super()._create_default_callbacks()
            return [one for one in every if type(one).__name__ != "DatasetsCallback"]

    return Trainer


def has_checkpoint(storage_path: str) -> bool:
    """Whether a run under `storage_path` left a complete checkpoint to continue from."""
    if not storage.exists(storage_path):
        return False
    for name in storage.names(storage_path):
        if name.endswith(f"/{SNAPSHOT}"):
            try:
                listed: Json = json.loads(storage.read_bytes(storage.join(storage_path, name)))
            except ValueError:  # cut off by a full disk
                continue
            if listed.get("checkpoint_results"):
                return True
    return False


def _number(compute: Compute) -> int | tuple[int, int]:
    least = compute.min_workers if isinstance(compute, AttachedCompute) else None
    return compute.workers if least is None else (least, compute.workers)


def _resources(compute: Compute) -> dict[str, float]:
    resources = {"CPU": float(compute.cpus_per_worker)}
    if compute.gpus_per_worker > 0:
        resources["GPU"] = float(compute.gpus_per_worker)
    return resources


def _on_worker(config: dict[str, Any]) -> None:
    place = str(config["place"])
    if storage.exists(storage.join(place, REFUSED)):
        return  # bad input stays bad: the restarted workers leave at once
    worker = RayWorker(place)
    try:
        function: TrainFunction = pickle.loads(config["function"])
        result = function(worker, config["argument"])
    except ConfigError as error:
        refused = json.dumps({"error": str(error)}).encode()
        try:
            storage.write_bytes(storage.join(place, REFUSED), refused)
        except storage.StorageError:
            raise error from None  # a full disk takes no note of it either: see _raise_if_told
        if worker.device.type == "cpu" and dist.is_initialized():
            # Bad input is seen by all workers, as a rule: then the run simply ends. A worker that
            # waits for this one in a collective finds the connection closed, and fails.
            dist.destroy_process_group()
            return
        raise
    if worker.rank == 0:
        data = json.dumps(result, allow_nan=False).encode()
        storage.write_bytes(storage.join(place, RESULT), data)
    worker.barrier()


def _raise_if_refused(place: str) -> None:
    refused = storage.join(place, REFUSED)
    if storage.exists(refused):
        message = str(json.loads(storage.read_bytes(refused))["error"])
        storage.remove(refused)
        raise ConfigError(message)


def _raise_if_told(failed: Exception, place: str) -> None:
    """Bad input that no note could be left of, and a disk that Ray Train itself found full."""
    failures: dict[int, Exception] = getattr(failed, "worker_failures", {})
    for failure in failures.values():
        error: BaseException = getattr(failure, "_base_exc", failure)
        if isinstance(error, ConfigError):
            raise error from failed
        if storage.is_disk_full(error):
            raise storage.StorageError(str(storage.explain(error, place))) from failed


class RayWorker(Collectives):
    """A `Worker` over `ray.train` and `torch.distributed` (gloo between CPUs, NCCL between
    GPUs).
    """

    def __init__(self, place: str) -> None:
        """Only inside a worker of `run`; `place` is where progress is written."""
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank = int(context.get_world_rank())
        self.world_size = int(context.get_world_size())
        self.device: torch.device = ray.train.torch.get_device()
        self._place = place
        self._said = 0.0
        self._fetched: Path | None = None

    def report(self, metrics: dict[str, float], checkpoint: Path | None = None) -> None:
        """`ray.train.report`, a barrier; returns when a restart would find the checkpoint."""
        train: Any = importlib.import_module("ray.train")
        part = None if checkpoint is None else train.Checkpoint.from_directory(str(checkpoint))
        train.report(metrics, checkpoint=part)
        if part is not None:
            # Without it a worker that dies right after the report would cost two intervals.
            committed = train.CheckpointConsistencyMode.COMMITTED
            train.get_all_reported_checkpoints(consistency_mode=committed)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, fetched to this machine if it lies elsewhere."""
        import ray.train

        newest: Any = ray.train.get_checkpoint()
        if newest is None:
            return None
        if self._fetched is None:
            with newest.as_directory() as found:
                local = Path(found)
                if str(newest.path) != str(local):  # a temporary copy, removed when the block ends
                    copy = Path(tempfile.mkdtemp(prefix="checkpoint-"))
                    for part in local.iterdir():
                        part.rename(copy / part.name)
                    local = copy
            self._fetched = local
        return self._fetched

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Rank 0 leaves a small file, at most once a second, which the driver shows."""
        now = time.monotonic()
        if self.rank or (now - self._said < PROGRESS_EVERY_S and done < total):
            return
        self._said = now
        write_progress(self._place, {"done": done, "total": total, "note": note})


def write_progress(place: str, state: Json) -> None:
    """Leave the progress at `place`. On an object store that does not take it only the display lags
    behind; training has checkpoints to fail by.

    Raises:
        StorageError: a local disk is full or cannot be written.
    """
    try:
        storage.write_bytes(storage.join(place, PROGRESS), json.dumps(state).encode())
    except storage.StorageError:
        if storage.is_local(place):
            raise


@contextlib.contextmanager
def _interruptible() -> Generator[None]:
    """Ctrl-C is a KeyboardInterrupt, as everywhere: Ray Train takes the signal for itself, leaves
    by `sys.exit`, and keeps the signal after the run.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _watched(compute: Compute) -> Generator[None]:
    """Nobody takes this machine away from a run on it: no process waits for that."""
    if isinstance(compute, AttachedCompute) or PREEMPTION in os.environ:
        yield
        return
    os.environ[PREEMPTION] = "0"
    try:
        yield
    finally:
        del os.environ[PREEMPTION]


@contextlib.contextmanager
def _shown(uri: str, title: str) -> Generator[None]:
    """Show the progress file of rank 0 while the block runs."""
    storage.remove(uri)
    finished = threading.Event()

    def follow() -> None:
        bar: Any = None
        shown = 0
        with contextlib.ExitStack() as stack:
            while not finished.wait(0 if bar is None and finished.is_set() else 0.5):
                state = _read_progress(uri)
                if state is None:
                    continue
                if bar is None:
                    bar = stack.enter_context(progress(int(state["total"]), title, unit="steps"))
                bar.expect(int(state["total"]))  # a search learns how long it is on its way
                bar.advance(int(state["done"]) - shown, note=str(state["note"]))
                shown = int(state["done"])
            state = _read_progress(uri)
            if bar is not None and state is not None:
                bar.advance(int(state["done"]) - shown, note=str(state["note"]))

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _read_progress(uri: str) -> Json | None:
    try:
        return cast(Json, json.loads(storage.read_bytes(uri)))
    except (ConfigError, OSError, ValueError):
        return None  # not there yet, or between two versions on an object store: look again
