"""`layer-select embed`: vectors of items and users, as Parquet."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Metrics, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_embed(
    vectors: Output[Dataset],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    model: str,
    student: str,
    step: str = "embed",
    item_column: str = "",
    scorer_sets: list[str] = [],  # noqa: B006 - the default in the compiled component
    sets: list[str] = [],  # noqa: B006
) -> NamedTuple("Outputs", [("uri", str), ("scorer_sets", list)]):
    """Write the vectors of items and users: pretrained features of a scorer.

    Args:
        vectors: the vectors, where they stand in the store.
        metrics: what was written.
        report: what was written.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        model: URI of the full model.
        student: URI of the smaller model.
        step: name of this step in the records and the views.
        item_column: column of a scorer's log with the items that get vectors here. Empty: no
            scorer reads them.
        scorer_sets: keys to set in the configuration of that scorer; returned with two more: the
            vectors are its feature `llm_item`, and it has no rivals.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill
    from rayrun.step import run_step

    done = run_step(
        "layer-select",
        "embed",
        config,
        store=f"{root}/store",
        sets=[*sets, f"inputs.model={model}", f"inputs.student={student}"],
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, vectors, metrics=metrics, report=report, checkpoint=student)
    if not item_column:
        return (done.uri, scorer_sets)
    assert done.result is not None
    width = done.result.details["width"]
    place = f"path: '{done.uri}/items.parquet', key: item, width: {width}"
    feature = f"{{type: pretrained, column: {item_column}, {place}}}"
    return (done.uri, [*scorer_sets, f"features.llm_item={feature}", "rivals={}"])
