"""Evaluation on one of the workers of a run: one model after the other, rows shared out."""

import gc

import torch
from safetensors.torch import save as save_tensors

from layer_select.compact.view import Compacted
from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.evaluate import sasrec_run
from layer_select.evaluate.contestants import FULL, STUDENT, Contestant
from layer_select.evaluate.measure import Columns, for_model, of_decoder, of_scores
from layer_select.evaluate.popularity import popularity
from layer_select.evaluate.sizes import sizes
from layer_select.evaluate.timing import peak_bytes, side_by_side
from layer_select.opened import DTYPES, Opened, open_on_worker
from layer_select.sources import Checkpoint, load, open_model
from layer_select.task.run import RecommendationTask, open_task
from rayrun import storage
from rayrun.config import Json, validate
from rayrun.ray.worker import Worker, peak_memory_of

HOME, TRANSFER = "next_item", "transfer"
"""Domains: that of `data:`, and that of `evaluate.data`."""


def on_worker(worker: Worker, argument: Json) -> Json:
    """Evaluate all models, and time full model and student on rank 0.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `models`; `domains`, the digest of the data of each; `sasrec`, the place
            of each domain's; `task`, digest; `infnet_data`; `state`, the folder of what is found.

    Returns:
        `models` of each domain, `state`, `sizes`, `timing`, `peak_memory_bytes`.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    config, opened = open_on_worker(worker, argument, argument["task"])
    models = [validate(Contestant, raw, where="models of the run") for raw in argument["models"]]
    tasks = _tasks(worker, config, opened, argument["domains"])
    exclude = config.evaluate.seen == "exclude"
    state = argument["state"]
    done: dict[str, list[str]] = {name: [] for name in tasks}
    for number, model in enumerate(models):
        checkpoint = checkpoint_of(opened, model)
        left = [n for n in tasks if not storage.exists(file_of(state, n, model.name))]
        worker.barrier()  # all have looked before one writes
        decoder = decoder_of(config, checkpoint, worker) if left else None
        for name in left:
            assert decoder is not None
            task = for_model(tasks[name], checkpoint)
            _keep(worker, state, name, model.name, of_decoder(
                worker, decoder, task, exclude_seen=exclude
            ))  # fmt: skip
        for name in tasks:
            done[name].append(model.name)
        worker.progress(number + 1, len(models), model.name)
        del decoder
        gc.collect()
    for name, task in tasks.items():
        done[name] += _by_items(worker, config, task, name, argument)
    told = {m.name: sizes(checkpoint_of(opened, m)) for m in models}
    timing = _timed(worker, config, opened, models) if worker.rank == 0 else None
    worker.barrier()
    return {
        "models": done,
        "state": state,
        "sizes": told,
        "timing": timing,
        "peak_memory_bytes": peak_memory_of(worker),
    }


def transfer_task(config: LayerSelectConfig, opened: Opened) -> RecommendationTask:
    """The same questions about another domain: item vectors come from its titles.

    Raises:
        ConfigError: no data there, or the task does not fit them.
    """
    assert config.evaluate.data is not None
    return open_task(
        config.evaluate.data,
        config.task,
        tokenizer=opened.checkpoint.tokenizer(),
        vocab_size=int(opened.checkpoint.config.vocab_size),
    )


def file_of(state: str, domain: str, model: str) -> str:
    """Where the columns of one model on one domain are kept."""
    return storage.join(state, f"{domain}-{model}.safetensors")


def checkpoint_of(opened: Opened, model: Contestant) -> Checkpoint:
    """Its checkpoint; layers that are left out are left out of a view."""
    checkpoint = open_model(None, model.place) if model.place else opened.checkpoint
    return checkpoint if model.kept is None else Compacted(checkpoint, model.kept)


def decoder_of(config: LayerSelectConfig, checkpoint: Checkpoint, worker: Worker) -> Decoder:
    """In memory whole, as it would serve."""
    return load(
        checkpoint, dtype=DTYPES[config.score.dtype], device=worker.device, attention="sdpa"
    )


def _tasks(
    worker: Worker, config: LayerSelectConfig, opened: Opened, digests: Json
) -> dict[str, RecommendationTask]:
    tasks = {HOME: opened.task}
    if config.evaluate.data is not None:
        tasks[TRANSFER] = transfer_task(config, opened)
    for name, task in tasks.items():
        sasrec_run.check_same(task.sequences, digests[name], worker)
    return tasks


def _by_items(
    worker: Worker,
    config: LayerSelectConfig,
    task: RecommendationTask,
    domain: str,
    argument: Json,
) -> list[str]:
    """Popularity and SASRec."""
    exclude = config.evaluate.seen == "exclude"
    names: list[str] = []
    for rival in config.evaluate.rivals:
        if rival.type == "popularity":
            counts = popularity(task.sequences)
            found = of_scores(
                worker,
                lambda histories, counts=counts: counts.expand(len(histories), -1),
                task,
                exclude_seen=exclude,
            )
        elif rival.type == "sasrec":
            place, items = argument["sasrec"][domain], len(task.sequences.titles)
            network = sasrec_run.read(place, items, worker.device)
            found = of_scores(worker, network.scores, task, exclude_seen=exclude)
        else:
            continue
        _keep(worker, argument["state"], domain, rival.type, found)
        names.append(rival.type)
    return names


def _keep(worker: Worker, state: str, domain: str, model: str, columns: Columns) -> None:
    if worker.rank == 0:
        storage.write_bytes(file_of(state, domain, model), save_tensors(columns))
    worker.barrier()


def _timed(
    worker: Worker, config: LayerSelectConfig, opened: Opened, models: list[Contestant]
) -> Json | None:
    """Full model and student on the same batches; memory of each in a process of its own."""
    timing = config.evaluate.timing
    chosen = {m.name: m for m in models if m.name in (FULL, STUDENT)}
    if not timing.repeats:
        return None
    length = timing.length or config.task.max_tokens
    decoders = {
        name: decoder_of(config, checkpoint_of(opened, model), worker)
        for name, model in chosen.items()
    }
    told = side_by_side(decoders, timing, length=length)
    decoders.clear()
    gc.collect()
    for name, model in chosen.items():
        source = None if config.model is None else config.model.to_dict()
        job = {
            "model": source,
            "place": model.place or config.inputs.model,
            "dtype": config.score.dtype,
            "batch": timing.batch,
            "length": length,
            "threads": torch.get_num_threads(),
        }
        told["models"][name]["peak_bytes"] = peak_bytes(job, worker.device)
    return told
