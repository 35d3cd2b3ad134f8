"""Fill the typed outputs of a KFP component from what its verb made.

KFP's artifact classes are taken as they come: this module does not import kfp.
"""

from pathlib import Path
from typing import Any

from rayrun import manifest, storage
from rayrun.run_report import REPORT_FILE
from rayrun.step import StepResult


def fill(done: StepResult, artifact: Any, *, metrics: Any = None, report: Any = None) -> None:
    """Say where the artifact stands and what it is; copy its metrics and its report.

    The artifact's URI becomes the directory in the store; KFP moves no data. Its metadata are the
    store's key, the content digest, the digest of the configuration, the rows, and whether it was
    taken from the store.

    Args:
        done: what `run_step` returned.
        artifact: KFP artifact (`Dataset`, `Model`, `Artifact`).
        metrics: KFP `Metrics`; defined numbers of `result.json` with their keys joined by dots.
        report: KFP `HTML`; the verb's report, where it wrote one.
    """
    artifact.uri = done.uri
    artifact.metadata.update({"key": done.key, "digest": done.digest, "cached": done.cached})
    if storage.exists(storage.join(done.uri, manifest.FILE)):
        artifact.metadata["config_digest"] = manifest.read_raw(done.uri)["config_digest"]
    if done.result is not None:
        artifact.metadata["rows"] = done.result.rows
        if metrics is not None:
            for name, value in done.result.flat().items():
                metrics.log_metric(name, value)
    page = storage.join(done.uri, REPORT_FILE)
    if report is not None and storage.exists(page):
        Path(report.path).write_bytes(storage.read_bytes(page))
