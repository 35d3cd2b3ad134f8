"""`infnet train`: the model and its rivals on prepared shards."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics, Model, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def infnet_train(
    model: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    data: str,
    step: str = "train",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Train the model and its rivals.

    Args:
        model: the run directory with the checkpoint, where it stands in the store.
        metrics: validation metrics of the model and the rivals.
        report: curves and tables of the training.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        data: URI of the prepared dataset.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "infnet",
        "train",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.data={data}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, model, metrics=metrics, report=report, checkpoint=f"{done.uri}/checkpoint")
    return (done.uri,)
