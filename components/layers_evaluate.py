"""`layer-select evaluate`: the smaller model beside the full one and its rivals."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_evaluate(
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
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
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
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
        task_config=task_config,
    )
    fill(done, evaluation, metrics=metrics, report=report, checkpoint=student)
    return (done.uri,)
