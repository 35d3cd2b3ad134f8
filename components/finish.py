"""The exit handler: what became of every step, in one status file and one linked report."""

from kfp import dsl
from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(
    report: Output[HTML],
    status: PipelineTaskFinalStatus,
    pipeline: str,
    root: str,
    run: str,
    steps: list[str],
    address: str = "",
    branches: dict = {},  # noqa: B006 - the default in the compiled component
):
    """Write `status.json` and `report.html` of the run, whether it ended well or not.

    After a failure, what this run alone had put on Serve is taken down first.

    The records of the steps say what happened. KFP's state counts where a step has left none: of a
    run that was terminated it is still `RUNNING`.

    Args:
        report: the report of the run, which links those of its steps.
        status: what KFP knows of the end.
        pipeline: name of the pipeline.
        root: where the store and the records of runs are.
        run: name of this run.
        steps: names of all steps, in their order.
        address: GCS address of the Ray cluster that serves; empty: the run deploys nothing.
        branches: steps by the branch they belong to, for a pipeline of several.
    """
    from pathlib import Path

    from rayrun.ray.take_down import take_down
    from rayrun.run_record import state_of
    from rayrun.run_report import write_report

    place = f"{root}/runs/{run}"
    failed = state_of(place, steps, status.state) != "succeeded"
    notes = take_down(place, steps, address) if failed else []
    page = write_report(
        place,
        pipeline,
        steps,
        backend_state=status.state,
        notes=notes,
        branches=branches or None,
    )
    Path(report.path).write_text(page, encoding="utf-8")
