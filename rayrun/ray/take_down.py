"""After a run of a pipeline that failed: its jobs in Kubernetes are removed, and its applications
taken down again.
"""

from collections.abc import Sequence

from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.kube.clean import remove_run
from rayrun.metrics import Result
from rayrun.ray.compute import AttachedCompute
from rayrun.ray.serve import undeploy
from rayrun.ray.session import session
from rayrun.run_record import read_steps


def take_down(run: storage.Uri, names: Sequence[str], address: str) -> list[str]:
    """End what the run alone put on Serve. What replaced a live application goes on answering.

    Jobs that steps of the run have left in Kubernetes are removed first: a run that is terminated
    gives them no time to do it themselves.

    Args:
        run: directory of the run's records.
        names: of all its steps.
        address: GCS address of the Ray cluster that serves; empty: nothing was deployed.

    Returns:
        Sentences for the report: what was taken down, or why it could not be.
    """
    notes = remove_run(str(run).rstrip("/").rpartition("/")[2])
    found = [_deployed(step.uri) for step in read_steps(run, names).values() if step.uri]
    alone = [str(told["application"]) for told in found if told and not told["replaced"]]
    if not alone or not address:
        return notes
    named = " and ".join(f"`{name}`" for name in alone)
    try:
        with session(AttachedCompute(address=address)):
            undeploy(*alone)
    except ConfigError as error:
        return [*notes, f"**The run put up {named} and could not take it down:** {error}"]
    return [
        *notes,
        f"The run did not succeed, so {named}, which it had put up, was taken down again.",
    ]


def _deployed(uri: str) -> Json:
    try:
        details = Result.read(uri).details
    except (ConfigError, OSError):  # a step without a result, or one that is gone
        return {}
    return details if "replaced" in details else {}
