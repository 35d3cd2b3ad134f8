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
):
    """Write `status.json` and `report.html` of the run, whether it ended well or not.

    The records of the steps say what happened. KFP's state counts where a step has left none: of a
    run that was terminated it is still `RUNNING`.

    Args:
        report: the report of the run, which links those of its steps.
        status: what KFP knows of the end.
        pipeline: name of the pipeline.
        root: where the store and the records of runs are.
        run: name of this run.
        steps: names of all steps, in their order.
    """
    from pathlib import Path

    from rayrun.run_report import write_report

    page = write_report(f"{root}/runs/{run}", pipeline, steps, backend_state=status.state)
    Path(report.path).write_text(page, encoding="utf-8")
