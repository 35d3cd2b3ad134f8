"""`infnet evaluate`: metrics with intervals on the test split, the model beside its rivals."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def infnet_evaluate(
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    data: str,
    checkpoint: str,
    without: str = "",
    step: str = "evaluate",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Measure the model and its rivals on the test split.

    Args:
        evaluation: predictions and metrics, where they stand in the store.
        metrics: test metrics of the model and the rivals.
        report: the tables and plots.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        data: URI of the prepared dataset.
        checkpoint: URI of the run directory of the training.
        without: URI of the evaluation of a model that lacks something this one has, on the same
            rows: what it brings is said, paired. Empty: none.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    places = [f"inputs.data={data}", f"inputs.checkpoint={checkpoint}"]
    if without:
        places.append(f"inputs.evaluation={without}")
    done = run_step(
        "infnet",
        "evaluate",
        config,
        store=f"{root}/store",
        sets=[*sets, *places],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, evaluation, metrics=metrics, report=report, checkpoint=f"{checkpoint}/checkpoint")
    return (done.uri,)
