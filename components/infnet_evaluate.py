"""`infnet evaluate`: metrics with intervals on the test split, the model beside its rivals."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def infnet_evaluate(
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    config: str,
    root: str,
    run: str,
    data: str,
    checkpoint: str,
    step: str = "evaluate",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Measure the model and its rivals on the test split.

    Args:
        evaluation: predictions and metrics, where they stand in the store.
        metrics: test metrics of the model and the rivals.
        report: the tables and plots.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        data: URI of the prepared dataset.
        checkpoint: URI of the run directory of the training.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "infnet",
        "evaluate",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.data={data}", f"inputs.checkpoint={checkpoint}"],
        step=step,
        run=f"{root}/runs/{run}",
    )
    fill(done, evaluation, metrics=metrics, report=report)
    return (done.uri,)
