"""Training the small decoder: its part of the one loop, `layer_select.training`."""

from layer_select.pretrain.config import Pretrain
from layer_select.pretrain.student import Student
from layer_select.pretrain.texts import TextMaker
from layer_select.training import loop
from layer_select.training.schedule import Schedule
from rayrun.config import Json
from rayrun.ray.worker import Worker


def fit(worker: Worker, config: Pretrain, student: Student, maker: TextMaker) -> Json:
    """Train `student`; continue where the worker's newest checkpoint stopped.

    Returns:
        As `layer_select.training.loop.fit`; the losses are next item, next token and answer.

    Raises:
        ConfigError: a loss that is not finite, bf16 without hardware, a damaged checkpoint.
    """
    return loop.fit(worker, schedule_of(config), student.train(), maker.rows)


def schedule_of(config: Pretrain) -> Schedule:
    """The section as the loop wants it."""
    return Schedule(
        section="pretrain",
        title="pretraining",
        epochs=config.epochs,
        batch_rows=config.batch_rows,
        lr=config.lr,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        precision=config.precision,
        checkpoint_every_steps=config.checkpoint_every_steps,
    )
