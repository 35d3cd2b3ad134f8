"""Rivals healed as the student was: by the same `heal:`, with the same steps, rows and seed.

They are kept by the content they are made from, so that a second table finds them.
"""

from layer_select.config import LayerSelectConfig
from layer_select.evaluate.config import Narrow, Scratch
from layer_select.evaluate.contestants import Student
from layer_select.heal.config import Heal
from layer_select.heal.config import Narrow as NarrowStart
from layer_select.heal.run import heal_model
from layer_select.heal.start import AnyStart, Cut, Random
from layer_select.opened import Opened
from layer_select.selection.room import Layers
from rayrun import storage
from rayrun.config import digest_of


def cut(config: LayerSelectConfig, opened: Opened, kept: Layers, *, root: str, teacher: str) -> str:
    """Folder of the full model's layers `kept`, healed."""
    return _healed(config, opened, Cut(kept=kept), budget(config.heal), root, teacher)


def anew(
    config: LayerSelectConfig,
    opened: Opened,
    student: Student,
    rival: Scratch | Narrow,
    *,
    root: str,
    teacher: str,
) -> str:
    """Folder of a model that begins at random: the student's architecture, or a narrower one."""
    start, section = beginning(student, rival, budget(config.heal))
    return _healed(config, opened, start, section, root, teacher)


def beginning(student: Student, rival: Scratch | Narrow, section: Heal) -> tuple[AnyStart, Heal]:
    """What a rival begins as, and the section it learns by."""
    if isinstance(rival, Scratch):
        kept = tuple(range(student.num_layers)) if student.origin is None else student.origin.kept
        return Random(kept=kept), section
    start = NarrowStart(
        layers=rival.layers or student.num_layers,
        width=rival.width,
        feed_forward=rival.feed_forward,
        heads=rival.heads,
        key_value_heads=rival.heads,
    )
    # Hidden states of another width cannot be compared.
    objectives = tuple(o for o in section.objectives if o.type != "hidden")
    return start, section.model_copy(update={"objectives": objectives})


def budget(section: Heal) -> Heal:
    """One stage as long as all stages of the student together."""
    stages = max(1, len(section.stages))
    return section.model_copy(
        update={"stages": (), "epochs": section.epochs * stages, "steps": section.steps * stages}
    )


def _healed(
    config: LayerSelectConfig,
    opened: Opened,
    start: AnyStart,
    section: Heal,
    root: str,
    teacher: str,
) -> str:
    key = digest_of([opened.digests, start.to_dict(), section.to_dict()])
    place = storage.join(root, f"healed-{key.removeprefix('sha256:')[:16]}")
    changed = config.model_copy(update={"heal": section})
    heal_model(changed, place, start=start, cache=teacher)
    return place
