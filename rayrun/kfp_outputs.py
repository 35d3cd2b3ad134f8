"""Fill the typed outputs of a KFP component from what its verb made.

KFP's artifact classes are taken as they come: this module does not import kfp.
"""

from pathlib import Path
from typing import Any

from rayrun import manifest, storage
from rayrun.config import Json
from rayrun.report import Report
from rayrun.run_report import REPORT_FILE
from rayrun.step import StepResult


def fill(
    done: StepResult,
    artifact: Any,
    *,
    metrics: Any = None,
    report: Any = None,
    checkpoint: str = "",
) -> None:
    """Say where the artifact stands and what it is; copy its metrics and its report.

    The artifact's URI becomes the directory in the store; KFP moves no data. Its metadata tell a
    backend's lineage what was made from what (what is not known has no key):

    - `kind`, `digest` (of the content), `key` (in the store), `cached` (it stood there already);
    - `config_digest`, `git_commit`, `created` of whoever made it;
    - `input_<name>`: digest of each input; `data_digest`: of the one that holds the data;
    - `checkpoint`: URI of the weights that it holds or is about;
    - `world_size`: equal workers that computed it (`compute.workers`);
    - `rows`, and `url` of what was deployed.

    Args:
        done: what `run_step` returned.
        artifact: KFP artifact (`Dataset`, `Model`, `Artifact`).
        metrics: KFP `Metrics`; defined numbers of `result.json` with their keys joined by dots.
        report: KFP `HTML`; the verb's report, where it wrote one.
        checkpoint: URI of the weights.
    """
    artifact.uri = done.uri
    found: Json = {"key": done.key, "digest": done.digest, "cached": done.cached}
    if storage.exists(storage.join(done.uri, manifest.FILE)):
        found |= _provenance(manifest.read_raw(done.uri))
    if done.result is not None:
        found |= {"rows": done.result.rows, "url": done.result.details.get("url", "")}
        if metrics is not None:
            for name, value in done.result.flat().items():
                metrics.log_metric(name, value)
    found["checkpoint"] = checkpoint
    artifact.metadata.update({name: value for name, value in found.items() if value != ""})
    page = storage.join(done.uri, REPORT_FILE)
    if report is not None and storage.exists(page):
        Path(report.path).write_bytes(storage.read_bytes(page))


def fill_given(uri: str, artifact: Any, *, report: Any) -> None:
    """The outputs of a step that was given what it would have made.

    Args:
        uri: what was given.
        artifact: KFP artifact; its URI becomes `uri`.
        report: KFP `HTML`; says so.
    """
    artifact.uri = uri
    artifact.metadata.update({"checkpoint": uri, "given": True})
    page = Report("Given", subtitle="nothing was made by this step")
    page.table(["what", "where"], [[artifact.name, uri]])
    Path(report.path).write_text(page.html(), encoding="utf-8")


# ---------------------------------------------------------------------------------------------

DATA_INPUTS = ("data", "task", "source")
"""Names under which manifests keep the digest of the data: prepared, with its samples, raw."""


def _provenance(found: Json) -> Json:
    inputs: dict[str, str] = found.get("inputs", {})
    config: Json = found["config"]
    workers = config.get("compute", {}).get("workers", "")
    return {
        "kind": found["kind"],
        "config_digest": found["config_digest"],
        "git_commit": found.get("git_commit", ""),
        "created": found["created"],
        **{f"input_{name}": digest for name, digest in inputs.items()},
        "data_digest": next((inputs[name] for name in DATA_INPUTS if name in inputs), ""),
        "world_size": workers,
    }
