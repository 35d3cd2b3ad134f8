"""Who stands in the table beside the student: other layers, other starts, at the same budget."""

from dataclasses import dataclass

import numpy as np

from layer_select.compact.origin import Origin
from layer_select.config import LayerSelectConfig
from layer_select.evaluate.config import BlockInfluence, EveryNth, FirstK, Narrow, Random, Scratch
from layer_select.families import constraints
from layer_select.opened import Opened
from layer_select.scores import Scores
from layer_select.selection.baselines import every_nth, first_k
from layer_select.selection.room import Layers, Room
from layer_select.sources import Checkpoint, open_model
from rayrun import manifest, storage
from rayrun.config import Config, ConfigError

FULL, STUDENT = "full", "student"
BLOCK_INFLUENCE = "block_influence"


class Contestant(Config):
    """A language model of the table."""

    name: str
    place: str = ""
    """Folder of a model of its own; empty: the full model."""
    kept: tuple[int, ...] | None = None
    """Layers of the model at `place` that run; None: all."""
    layers: tuple[int, ...] | None = None
    """Layers of the full model that it was made of; None: none of them, or not known."""
    healed: bool = False


@dataclass(frozen=True)
class Student:
    """The smaller model that is evaluated."""

    checkpoint: Checkpoint
    place: str
    origin: Origin | None

    @property
    def num_layers(self) -> int:
        """As many as its rivals keep."""
        return int(self.checkpoint.config.num_hidden_layers)

    @property
    def healed(self) -> bool | None:
        """Whether it was healed; None: it does not say."""
        if self.origin is None:
            return None
        return any(stage.get("verb") == "heal" for stage in self.origin.stages)


def open_student(config: LayerSelectConfig, opened: Opened) -> Student | None:
    """The model at `inputs.student`; None where none is given.

    Raises:
        ConfigError: it is damaged, made of another model, or reads text in another way.
    """
    place = config.inputs.student
    if not place:
        return None
    if storage.exists(storage.join(place, manifest.FILE)):
        manifest.verify(place)
    checkpoint = open_model(None, place)
    origin = Origin.of(checkpoint)
    if origin is not None and origin.model != opened.digests["model"]:
        raise ConfigError(
            f"inputs.student ({place}) was made of another model: {origin.model}, here it is "
            f"{opened.digests['model']} ({opened.checkpoint.where}); give the model it was made "
            "of as inputs.model, or the student of this model"
        )
    titles = opened.task.sequences.titles
    theirs = checkpoint.tokenizer()
    mine = opened.checkpoint.tokenizer()
    if theirs.get_vocab() != mine.get_vocab() or theirs(titles[0]) != mine(titles[0]):
        raise ConfigError(
            f"inputs.student ({place}) has another tokenizer than the full model "
            f"({opened.checkpoint.where}); both must read the same prompts: compact or heal this "
            "model"
        )
    return Student(checkpoint, place, origin)


def check(config: LayerSelectConfig, student: Student | None) -> None:
    """Whether the table can be made, before anything is trained.

    Raises:
        ConfigError: rivals that need a student, scores, or another task.
    """
    section = config.evaluate
    by_items = [r.type for r in section.rivals if r.type in ("popularity", "sasrec")]
    if config.task.type != "head" and by_items:
        raise ConfigError(
            f"{' and '.join(by_items)} of evaluate.rivals rank the catalogue, which task.type "
            f"{config.task.type} does not ask for; leave them out (--set evaluate.rivals=[…])"
        )
    if config.task.type != "head" and section.seen == "exclude":
        raise ConfigError(
            "evaluate.seen: exclude leaves items out of a ranking, which task.type "
            f"{config.task.type} has none of; set evaluate.seen: rank"
        )
    smaller = [r for r in section.rivals if r.type not in ("popularity", "sasrec")]
    if smaller and student is None:
        raise ConfigError(
            f"{', '.join(r.type for r in smaller)} of evaluate.rivals have as many layers as the "
            "student, and there is none: set inputs.student (output of compact or heal), or leave "
            "them out"
        )
    if student is None:
        return
    healed = [r.type for r in smaller if getattr(r, "heal", True)]
    if healed and student.healed is False:
        raise ConfigError(
            f"{', '.join(healed)} of evaluate.rivals would be healed, but inputs.student "
            f"({student.place}) was only compacted: set heal: false on them (leave scratch and "
            "narrow out), or give the student that `layer-select heal` made"
        )
    if any(r.type == "block_influence" for r in smaller) and not config.inputs.scores:
        raise ConfigError(
            "block_influence of evaluate.rivals goes by scores: set inputs.scores (output of "
            "`layer-select score` with the method block_influence), or leave it out"
        )


def contestants(
    config: LayerSelectConfig, opened: Opened, student: Student | None, *, root: str, teacher: str
) -> list[Contestant]:
    """All language models of the table; those that are healed are healed here, or found healed.

    Args:
        config: the whole run.
        opened: the full model.
        student: beside it.
        root: folder of what is kept between runs.
        teacher: folder of the teacher's outputs, shared by all that are healed.

    Raises:
        ConfigError: bad scores, or as `heal_model`.
        RuntimeError: as `heal_model`.
    """
    found = [Contestant(name=FULL, layers=tuple(range(_depth(opened))))]
    if student is None:
        return found
    kept = None if student.origin is None else student.origin.kept
    found.append(
        Contestant(name=STUDENT, place=student.place, layers=kept, healed=bool(student.healed))
    )
    for name, layers, heal in layer_sets(config, opened, student):
        if not heal:
            found.append(Contestant(name=name, kept=layers, layers=layers))
            continue
        from layer_select.evaluate.healed import cut

        place = cut(config, opened, layers, root=root, teacher=teacher)
        found.append(Contestant(name=name, place=place, layers=layers, healed=True))
    for rival in config.evaluate.rivals:
        if isinstance(rival, Scratch | Narrow):
            from layer_select.evaluate.healed import anew

            place = anew(config, opened, student, rival, root=root, teacher=teacher)
            found.append(Contestant(name=rival.type, place=place, healed=True))
    return found


def layer_sets(
    config: LayerSelectConfig, opened: Opened, student: Student
) -> list[tuple[str, Layers, bool]]:
    """Name, layers, and whether they are healed, of each rival that keeps layers of the model.

    Each keeps as many as the student; no layer is protected, the family's rule holds.

    Raises:
        ConfigError: the scores are missing, damaged or of another model.
    """
    rule = constraints(opened.checkpoint.config) if config.select.portable else None
    room = Room(_depth(opened), student.num_layers, (), rule)
    found: list[tuple[str, Layers, bool]] = []
    for rival in config.evaluate.rivals:
        match rival:
            case FirstK():
                found.append((rival.type, first_k(room), rival.heal))
            case EveryNth():
                found.append((rival.type, every_nth(room), rival.heal))
            case Random():
                generator = np.random.default_rng(rival.seed)
                found += [
                    (f"{rival.type}_{number}", room.draw(generator), rival.heal)
                    for number in range(rival.draws)
                ]
            case BlockInfluence():
                scores = Scores.read(config.inputs.scores, model=opened.digests["model"])
                kept = room.best(scores.of_method(BLOCK_INFLUENCE).scores)
                found.append((rival.type, kept, rival.heal))
            case _:
                pass
    return found


def _depth(opened: Opened) -> int:
    return int(opened.checkpoint.config.num_hidden_layers)
