"""Iterative plans: choose among the layers that are left, heal, and again (32 → 16 → 8).

    <out>.stages/plan-16/  healed-16/  plan-8/      and the last healed model at <out>

Whoever loses most layers at once is hard to heal; with a step between, the next layers are chosen
by what the healed model loses (Minitron, Muralidharan et al. 2024, arXiv:2407.14679). Stages stay
on disk: the same call goes on after the last that stands.
"""

from collections.abc import Callable

from layer_select.config import LayerSelectConfig
from layer_select.heal.start import Cut
from layer_select.opened import open_checkpoint
from layer_select.plan import Plan
from layer_select.selection.budget import LayerBudget
from layer_select.selection.run import select
from rayrun import storage
from rayrun.config import ConfigError, Json
from rayrun.metrics import Result
from rayrun.ray.session import session


def staged(config: LayerSelectConfig, out: str, heal_model: Callable[..., Result]) -> Result:
    """Run all stages; the teacher is the full model in each.

    Args:
        config: `inputs.model` or `model` is the full model; `inputs.scores` serve the first stage,
            for later models have no scores.
        out: output directory of the last stage.
        heal_model: heals one student.

    Returns:
        That of the last stage, with all of them under `details.stages`.

    Raises:
        ConfigError: a stage has as many layers as the one before, or more; or as `select` and
            `heal_model`.
    """
    layers = open_checkpoint(config).config.num_hidden_layers
    if (stages := config.heal.stages)[0] >= layers:
        raise ConfigError(
            f"heal.stages must leave layers out: the model has {layers}, the first stage "
            f"{stages[0]}; name fewer"
        )
    with session(config.compute):
        return _each(config, out, heal_model)


def _each(config: LayerSelectConfig, out: str, heal_model: Callable[..., Result]) -> Result:
    stages = config.heal.stages
    beside, student, told, results = f"{out}.stages", "", list[Json](), list[Result]()
    for number, keep in enumerate(stages):
        update = {"model": student or config.inputs.model}
        if student:
            update["scores"] = ""
        section = config.select.model_copy(update={"budget": LayerBudget(keep=keep)})
        inputs = config.inputs.model_copy(update=update)
        choosing = config.model_copy(update={"select": section, "inputs": inputs})
        chosen = storage.join(beside, f"plan-{keep}")
        select(choosing, chosen)
        last = number + 1 == len(stages)
        place = out if last else storage.join(beside, f"healed-{keep}")
        start = Cut(kept=Plan.read(chosen).kept, model=student)
        cache = storage.join(beside, "teacher")
        result = heal_model(config, place, start=start, cache=cache, before=tuple(told))
        told.append(
            {
                "layers": keep,
                "kept": result.details["kept"],
                "metrics": result.metrics,
                "cost": result.details["cost"],
            }
        )
        student = place
        results.append(result)
    return results[-1]
