"""`infnet prepare`: raw log → fitted schema → shards."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def infnet_prepare(
    dataset: Output[Dataset],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    step: str = "prepare",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """Prepare the raw log: fit the features on the training period, encode, write shards.

    Args:
        dataset: the prepared dataset, where it stands in the store.
        metrics: numbers of `result.json`.
        report: what was found in the log.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "infnet",
        "prepare",
        config,
        store=f"{root}/store",
        sets=sets,
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, dataset, metrics=metrics, report=report)
    return (done.uri,)
