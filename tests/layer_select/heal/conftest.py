"""Healing of the small trained decoder, in one process."""

import pytest
import torch

from layer_select.heal.batch import Curriculum
from layer_select.heal.config import Heal
from layer_select.heal.healing import Healing
from layer_select.heal.objectives.hidden import mapping
from layer_select.heal.start import Cut
from layer_select.heal.students import begin, student_of, teacher_of
from layer_select.heal.teacher import Online, Silent
from layer_select.heal.work import taught, text_maker
from layer_select.opened import open_inputs
from rayrun.config import validate
from rayrun.ray.worker import SingleWorker

ALL = [{"type": name} for name in ("task", "tokens", "kl", "hidden", "ranking")]
HEAL = {"row_tokens": 96, "batch_rows": 6, "epochs": 1, "lr": 2e-3, "bootstrap": 100}


@pytest.fixture(scope="session")
def heal_config(tiny_config, tiny_model):
    """The small decoder as the teacher, all objectives."""
    source = tiny_config.data.source.model_copy(update={"users": 100, "rows": 3500})
    heal = validate(Heal, {**HEAL, "objectives": ALL}, where="test")
    inputs = tiny_config.inputs.model_copy(update={"model": str(tiny_model)})
    data = tiny_config.data.model_copy(update={"source": source})
    return tiny_config.model_copy(update={"heal": heal, "inputs": inputs, "data": data})


@pytest.fixture(scope="session")
def heal_opened(heal_config):
    return open_inputs(heal_config)


@pytest.fixture(scope="session")
def healing_of(heal_config, heal_opened, tmp_path_factory):
    """`make(kept, teacher=None, heal=…)`: a learner and its curriculum, fresh each time."""

    def make(kept, heal=None, teacher=None):
        config = heal_config.model_copy(update={"heal": heal or heal_config.heal})
        worker = SingleWorker(tmp_path_factory.mktemp("worker"))
        begun = begin(Cut(kept=kept), heal_opened.checkpoint)
        objectives = taught(config.heal, begun)
        mapped = mapping(begun.kept, 12)
        signals = [s for o in objectives for s in o.signals(mapped)]
        if teacher is None and signals:
            full = teacher_of(heal_opened, config, worker)
            teacher = Online(full, signals, micro_rows=0, bf16=False)
        student = student_of(begun, heal_opened, seed=0, device=torch.device("cpu"))
        learner = Healing(
            student, objectives, teacher or Silent(), mapped=mapped, task=config.task.type
        )
        return learner, Curriculum(config.heal, text_maker(config, heal_opened))

    return make


@pytest.fixture(scope="session")
def tiny_healing(healing_of):
    """Three layers of twelve; the rows of the first epoch."""
    learner, curriculum = healing_of((0, 5, 11))
    return learner, curriculum.rows(0)
