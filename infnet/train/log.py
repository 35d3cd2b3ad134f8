"""What a run says while it trains: metric records of rank 0, and a few words for the progress
display.
"""

import tempfile
from pathlib import Path
from types import TracebackType

from infnet.config import InfnetConfig
from rayrun import storage
from rayrun.metrics import FILE, MetricLog, Metrics
from rayrun.ray.worker import Worker


class RunLog:
    """`metrics.jsonl` of a run directory. On an object store it is uploaded at every evaluation and
    checkpoint.

    Records after the step a resumed run starts at are dropped: they will be written again.
    """

    def __init__(self, out: str, config: InfnetConfig, worker: Worker, *, resume_at: int) -> None:
        self.note = ""
        self._tasks = {name: task.weight for name, task in config.tasks.items()}
        self._uri = storage.join(out, FILE)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._log: MetricLog | None = None
        if worker.rank:
            return
        path = storage.local_path(self._uri)
        if path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="metrics-")
            path = Path(self._folder.name) / FILE
            if storage.exists(self._uri):
                path.write_bytes(storage.read_bytes(self._uri))
        self._path = path
        self._log = MetricLog(path, config.sinks, run=config.name, resume_at=resume_at)

    def losses(self, step: int, losses: dict[str, float]) -> None:
        """Mean training loss per task since the last call."""
        total = sum(self._tasks[name] * loss for name, loss in losses.items())
        self.note = f"loss {total:.4f}"
        if self._log:
            for name, loss in losses.items():
                self._log.write(step=step, split="train", task=name, name="loss", value=loss)
            self._log.write(step=step, split="train", task="", name="loss", value=total)

    def metrics(self, step: int, metrics: Metrics) -> None:
        """Metrics of an evaluation."""
        if self._log:
            self._log.write_all(step, "valid", metrics)
            self.flush()

    def flush(self) -> None:
        """Make the records visible under the run directory."""
        if self._folder is not None:
            storage.write_bytes(self._uri, self._path.read_bytes())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._log:
            self._log.close()
            self.flush()
        if self._folder is not None:
            self._folder.cleanup()
