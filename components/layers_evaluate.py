"""`layer-select evaluate`: the smaller model beside the full one and its rivals."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def layers_evaluate(
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    config: str,
    root: str,
    run: str,
    model: str,
    scores: str,
    student: str,
    step: str = "evaluate",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Rank the full catalogue with the smaller model, the full one and the rivals.

    Args:
        evaluation: ranks and metrics, where they stand in the store.
        metrics: of all models on the test users.
        report: tables, targets, sizes and speed.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        model: URI of the full model.
        scores: URI of the scores.
        student: URI of the smaller model.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "layer-select",
        "evaluate",
        config,
        store=f"{root}/store",
        sets=[
            *sets,
            f"inputs.model={model}",
            f"inputs.scores={scores}",
            f"inputs.student={student}",
        ],
        step=step,
        run=f"{root}/runs/{run}",
    )
    fill(done, evaluation, metrics=metrics, report=report)
    return (done.uri,)
