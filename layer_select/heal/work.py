"""Healing on one of the workers of a run."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from layer_select.config import LayerSelectConfig
from layer_select.heal import adapters
from layer_select.heal.batch import Curriculum
from layer_select.heal.config import Cached, Heal, Lora
from layer_select.heal.healing import Healing
from layer_select.heal.measure import Reached, reached, retained
from layer_select.heal.objectives.base import Base
from layer_select.heal.objectives.hidden import mapping
from layer_select.heal.recommender import Recommender
from layer_select.heal.signals import Signal
from layer_select.heal.start import AnyStart, Started
from layer_select.heal.students import Begun, Healed, begin, student_of, teacher_of
from layer_select.heal.teacher import Cache, Online, Silent, Teacher
from layer_select.opened import Opened, open_on_worker
from layer_select.pretrain.texts import Rows, TextMaker
from layer_select.sources.huggingface_write import write_folder
from layer_select.task.head import written_projection
from layer_select.task.run import RecommendationTask
from layer_select.task.samples import Part
from layer_select.training import loop
from layer_select.training.schedule import Schedule
from rayrun import storage
from rayrun.config import Json, digest_of, validate
from rayrun.ray.worker import Worker, peak_memory_of

HEALED = "model"
"""The healed student inside the run's state, until the driver has put it in place."""


def on_worker(worker: Worker, argument: Json) -> Json:
    """Heal a student.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `start`, as data; `digests` of model and task; `infnet_data`, for named
            sources; `model`, where the student goes; `cache`, where the teacher's outputs lie.

    Returns:
        `metrics` (`before`, `after`, `full`, each by part), `retained`, `cost`, `losses`, and what
        else the report tells.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    config, opened = open_on_worker(worker, argument, argument["digests"]["task"])
    start: AnyStart = validate(Started, {"start": argument["start"]}, where="the start").start
    begun, heal = begin(start, opened.checkpoint), config.heal
    objectives = taught(heal, begun)
    mapped = mapping(begun.kept, int(opened.checkpoint.config.num_hidden_layers))
    signals = [signal for objective in objectives for signal in objective.signals(mapped)]
    curriculum = Curriculum(heal, text_maker(config, opened))
    schedule = schedule_of(heal)

    full = teacher_of(opened, config, worker)
    found: dict[str, dict[Part, Reached]] = {"full": _measured(worker, full, opened)}
    of_full = weights_met(full), sum(p.numel() for p in full.model.parameters())
    teacher, asked = _teacher(worker, config, full, signals, curriculum, argument)
    del full  # lives on in an online teacher
    student = student_of(begun, opened, seed=heal.seed, device=worker.device).to(worker.device)
    found["before"] = _measured(worker, student, opened)
    matrices = 0
    if isinstance(heal.train, Lora):
        rank, alpha = heal.train.rank, heal.train.alpha
        matrices = adapters.attach(student.model, rank=rank, alpha=alpha, seed=heal.seed)
    learner = Healing(
        student,
        objectives,
        teacher,
        mapped=mapped,
        task=config.task.type,
        decay=not matrices,
    )
    learning = sum(p.numel() for p in learner.trained().values())
    trained = loop.fit(worker, schedule, learner, curriculum.rows)
    if isinstance(teacher, Online):
        asked = trained["tokens"]
    student = learner.student
    if matrices:
        adapters.merge(student.model)
    healed = Healed(begun, student)
    found["after"] = _measured(worker, student, opened)
    cost = {
        "steps": trained["steps"],
        "tokens": trained["tokens"],
        "seconds": trained["seconds"],
        "teacher_tokens": asked,
        "flop": (4 if matrices else 6) * weights_met(student) * trained["tokens"]
        + 2 * of_full[0] * asked,
    }
    if worker.rank == 0:
        _save(healed, begun, cost, argument)
    worker.barrier()
    return {
        **_told(config, opened, found),
        "cost": cost,
        "kept": list(begun.kept),
        "objectives": list(learner.names),
        "losses": trained["losses"],
        "started_at": trained["started_at"],
        "micro_rows": trained["micro_rows"],
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "parameters_full": of_full[1],
        "parameters_learnt": learning,
        "rows": 0 if curriculum.kept is None else len(curriculum.kept),
        "peak_memory_bytes": peak_memory_of(worker),
    }


def taught(heal: Heal, begun: Begun) -> list[Base]:
    """The objectives that a student can have: a narrow one has no layer to compare with."""
    return [o for o in heal.objectives if o.weight and (begun.kept or o.type != "hidden")]


def text_maker(config: LayerSelectConfig, opened: Opened) -> TextMaker:
    """Of the training events.

    Raises:
        ConfigError: a text may be longer than a row, or prompts do not end with a title.
    """
    task = opened.task
    events = task.sequences.training()
    ratings = task.sequences.training_ratings() if config.task.type == "rating" else None
    return TextMaker(
        config.heal, config.task, task.prompts, events, section="heal", ratings=ratings
    )


def schedule_of(heal: Heal) -> Schedule:
    """The section as the loop wants it."""
    return Schedule(
        section="heal",
        title="healing",
        epochs=heal.epochs,
        batch_rows=heal.batch_rows,
        lr=heal.lr,
        warmup=heal.warmup,
        weight_decay=heal.weight_decay,
        clip_norm=heal.clip_norm,
        precision=heal.precision,
        checkpoint_every_steps=heal.checkpoint_every_steps,
        steps=heal.steps,
        micro_rows=heal.micro_rows,
        zero_stage=heal.zero_stage,
    )


def _teacher(
    worker: Worker,
    config: LayerSelectConfig,
    full: Recommender,
    signals: list[Signal],
    curriculum: Curriculum,
    argument: Json,
) -> tuple[Teacher, int]:
    """Whoever answers, and the tokens it was asked about by now."""
    heal, bf16 = config.heal, config.heal.precision == "bf16"
    if not signals:
        return Silent(), 0
    if not isinstance(heal.teacher, Cached) or curriculum.kept is None:
        return Online(full, signals, micro_rows=heal.micro_rows, bf16=bf16), 0
    cut = [heal.row_tokens, heal.event_dropout, heal.yes_no_share, heal.seed]
    how = [heal.teacher.to_dict(), heal.precision]
    key = digest_of([argument["digests"], cut, how]).removeprefix("sha256:")[:16]
    cache = Cache(storage.join(argument["cache"], key), signals)
    total = heal.steps or heal.epochs * -(-len(curriculum.rows(0)) // heal.batch_rows)
    tokens = _asked(worker, cache, curriculum.kept, argument)
    cache.fill(
        worker,
        full,
        curriculum.kept,
        dtype=heal.teacher.dtype,
        micro_rows=heal.micro_rows or max(1, heal.batch_rows // worker.world_size),
        bf16=bf16,
        progress=lambda note: worker.progress(0, total, note),
    )
    return cache, tokens


def _asked(worker: Worker, cache: Cache, rows: Rows, argument: Json) -> int:
    """Tokens that this run asks the teacher about: told when it begins, and the same to an attempt
    that goes on after files stand.
    """
    place = f"{argument['model']}.asked.json"
    key = argument["key"]
    if worker.rank == 0:
        known = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
        if known.get("key") != key:
            told = {"key": key, "tokens": cache.asked_for(rows)}
            storage.write_bytes(place, json.dumps(told).encode())
    worker.barrier()
    return int(json.loads(storage.read_bytes(place))["tokens"])


def _measured(worker: Worker, recommender: Recommender, opened: Opened) -> dict[Part, Reached]:
    head = written_projection(recommender.projection) if opened.task.task.type == "head" else None
    rating = None if recommender.rating is None else recommender.rating.written()
    of = opened.task
    task = RecommendationTask(of.task, of.sequences, of.prompts, head, rating)
    return reached(worker, recommender.decoder, task)


def _told(config: LayerSelectConfig, opened: Opened, found: dict[str, dict[Part, Reached]]) -> Json:
    metrics = {
        who: {part: of.means() for part, of in parts.items()} for who, parts in found.items()
    }
    ratios: Json = {}
    for part, full in found["full"].items():
        users = torch.tensor([sample.user for sample in opened.task.samples[part]]).numpy()
        ratios[part] = {
            who: retained(
                found[who][part],
                full,
                users,
                replicates=config.heal.bootstrap,
                seed=config.heal.seed,
            )
            for who in ("before", "after")
        }
    return {"metrics": metrics, "retained": ratios}


def _save(healed: Healed, begun: Begun, cost: Json, argument: Json) -> None:
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        write_folder(healed, Path(folder))
        if begun.origin is not None:
            stage = {"verb": "heal", "digest": argument["key"], **cost}
            stages = (*begun.origin.stages, stage)
            begun.origin.model_copy(update={"stages": stages}).write(folder)
        storage.remove(argument["model"])
        storage.put(Path(folder), argument["model"])


def weights_met(recommender: Recommender) -> float:
    """Weights of the layers and the output head that one token is multiplied with.

    Operations are estimated from them: 2 each forward, 6 with backward, 4 where weights are frozen
    (Kaplan et al. 2020, arXiv:2001.08361). Attention over positions and item scores are not
    counted; of experts those that one token meets.
    """
    model: Any = recommender.model
    config = model.config
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    met = config.num_experts_per_tok / experts if experts else 1.0
    layers = [p for p in model.get_decoder().layers.parameters() if p.dim() > 1]
    head = model.get_output_embeddings().weight.numel()
    return head + sum(p.numel() * (met if p.dim() == 3 else 1.0) for p in layers)
