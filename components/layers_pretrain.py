"""`layer-select pretrain-tiny`: the full model, where none is given."""

# pyright: reportInvalidTypeForm=false
# KFP reads the named outputs from the annotation itself.
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Metrics, Model, Output

from components.image import IMAGE
from components.passthroughs import PASSTHROUGHS


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=PASSTHROUGHS)
def layers_pretrain(
    model: Output[Model],
    metrics: Output[Metrics],
    report: Output[HTML],
    task_config: dsl.TaskConfig,
    config: str,
    root: str,
    run: str,
    given: str = "",
    step: str = "pretrain",
    sets: list[str] = [],  # noqa: B006 - the default in the compiled component
) -> NamedTuple("Outputs", [("uri", str)]):
    """The language model whose layers are chosen: the one given, or a small one made here.

    Args:
        model: the model, where it stands.
        metrics: next-item metrics of one made here, popularity beside it.
        report: losses of one made here.
        task_config: resources, environment and nodes of this task, for the Ray that it starts;
            filled by the backend, empty elsewhere.
        config: path or URI of the configuration, or its YAML.
        root: where the store and the records of runs are.
        run: name of this run.
        given: a Hugging Face folder, a .gguf file or `ollama:NAME`. Empty: the one that `pretrain:`
            of the configuration describes is trained.
        step: name of this step in the records and the views.
        sets: keys to set in the configuration, `a.b=v`.
    """
    from rayrun.kfp_outputs import fill, fill_given
    from rayrun.step import run_step

    if given:
        fill_given(given, model, report=report)
        return (given,)
    done = run_step(
        "layer-select",
        "pretrain-tiny",
        config,
        store=f"{root}/store",
        sets=sets,
        step=step,
        run=f"{root}/runs/{run}",
        task_config=task_config,
    )
    fill(done, model, metrics=metrics, report=report, checkpoint=done.uri)
    return (done.uri,)
