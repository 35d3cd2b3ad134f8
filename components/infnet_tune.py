"""`infnet tune`: the values of a configuration that validate best."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def infnet_tune(
    search: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    data: str,
    wanted: bool = True,
    step: str = "tune",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str), ("sets", list)]):
    """Search what `tune:` of the configuration says: the counts of proxies, as it stands.

    Args:
        search: every trial and the best configuration, where they stand in the store.
        metrics: validation metrics of the best point.
        report: the metric against proxies and cost, and whether the data can tell the points apart.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        data: URI of the prepared dataset.
        wanted: false: nothing is searched, and `sets` are returned as they are.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`; returned with the best values after them.
    """
    if not wanted:
        return ("", sets)

    import json

    from rayrun import storage
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "infnet",
        "tune",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.data={data}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, search, metrics=metrics, report=report)
    best = json.loads(storage.read_bytes(f"{done.uri}/best.json"))
    return (done.uri, [*sets, *best["sets"]])
