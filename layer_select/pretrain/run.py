"""`layer-select pretrain-tiny`: a small decoder of our own, as an ordinary Hugging Face folder.

    out/config.json  model.safetensors  generation_config.json  tokenizer.json  …
        item_head.safetensors      P of the item vectors (layer_select.task.head)
        result.json  report.html  manifest.json

While it trains, its resumable state stands beside it in `<out>.training/`.
"""

import tempfile
import time
from pathlib import Path

import torch

from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.places import absolute, data_root, use_data_root
from layer_select.pretrain import build, loop, teacher
from layer_select.pretrain.report import report
from layer_select.task.head import ITEM_HEAD, written_projection
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of, validate
from rayrun.data.sequences import open_sequences
from rayrun.metrics import Result
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker, peak_memory_of
from rayrun.replacing import refuse_strangers

KIND = "layer_select.model"
FORMAT_VERSION = 1
TASK = "next_item"
CACHE = "cache"
"""Of models made by `pretrained`, beside the run's directory."""
MODEL = "model"
"""The finished model inside the training state, until the driver has put it in place."""


def pretrain(config: LayerSelectConfig, out: str) -> Result:
    """Train the decoder that `config.pretrain` describes on the histories of `config.data`.

    It must beat popularity: the 95 % interval of the difference in NDCG@10 over users must lie
    above 0, on the test targets, which training never saw. A call that was interrupted is continued
    by the same call; one that finds the same model at `out` returns its result.

    Returns:
        `result.json`: ranking metrics on the test part, popularity under `baselines`, and the
        differences with their intervals under `details`.

    Raises:
        ConfigError: bad configuration or data; `out` is being written by another process; or the
            decoder is no teacher, in which case nothing is left behind.
        RuntimeError: workers failed more than `pretrain.max_failures` times; the same call
            continues.
    """
    started = time.monotonic()
    config = absolute(config)
    section = build.section(config)
    out = storage.absolute(out)
    with storage.claim(out):
        sequences = open_sequences(config.data)
        key = model_key(config, sequences.digest)
        if manifest.stands(out, kind=KIND, key=key):
            return Result.read(out)
        refuse_strangers(out)  # before the work, not after it
        tokenizer = build.tokenizer_of(config, sequences)
        build.build(config, tokenizer, sequences)  # what is wrong with it is told before Ray starts
        state = f"{out}.training"
        found = run_on_ray(
            on_worker,
            {
                "config": config.to_dict(),
                "tokenizer": tokenizer,
                "data": sequences.digest,
                "infnet_data": data_root(),
                "model": storage.join(state, MODEL),
            },
            compute=config.compute,
            storage_path=state,
            name=key.removeprefix("sha256:")[:16],
            max_failures=section.max_failures,
            title="pretraining",
        )
        compared = found["compared"]
        if compared["difference"][teacher.WATCHED]["low"] <= 0:
            storage.remove(state)
            raise ConfigError(no_teacher(compared))
        result = Result.of(
            "pretrain-tiny",
            config,
            started=started,
            split=compared["part"],
            metrics={TASK: compared["metrics"]},
            baselines={"popularity": {TASK: compared["popularity"]}},
            rows=compared["samples"],
            peak_memory_bytes=int(found["peak_memory_bytes"]),
            details={
                "difference_to_popularity": compared["difference"],
                "counts": sequences.counts,
                **{n: found[n] for n in ("parameters", "steps", "tokens", "train_s", "losses")},
            },
        )
        with storage.output(out) as staging, tempfile.TemporaryDirectory() as scratch:
            made = storage.fetch(storage.join(state, MODEL), Path(scratch))
            for file in made.iterdir():
                (staging / file.name).write_bytes(file.read_bytes())
            result.write(staging)
            report(config, result).write(str(staging / "report.html"))
            manifest.write(
                staging,
                kind=KIND,
                format_version=FORMAT_VERSION,
                config=config,
                inputs={"data": sequences.digest},
                info={"key": key, "parameters": found["parameters"]},
            )
        storage.remove(state)
    return result


def pretrained(config: LayerSelectConfig, out: str) -> str:
    """The model of `config.pretrain`, made where it does not stand yet.

    It lies under `config.cache`, or else in `cache/` beside the run directory `out`, named by what
    it is made from: data, prompts, `pretrain:`.

    Raises:
        ConfigError: as `pretrain`.
    """
    root = storage.absolute(config.cache)
    if not root:
        parent, _, _ = storage.absolute(out).rstrip("/").rpartition("/")
        root = storage.join(parent, CACHE)
    build.section(config)
    key = model_key(config, open_sequences(config.data).digest)
    place = storage.join(root, f"pretrained-{key.removeprefix('sha256:')[:16]}")
    if not manifest.stands(place, kind=KIND, key=key):
        pretrain(config, place)
    return place


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the data, the model's size, the work of an epoch.

    Raises:
        ConfigError: bad configuration or data.
    """
    section = build.section(config)
    sequences = open_sequences(config.data)
    made = build.build(config, build.tokenizer_of(config, sequences), sequences)
    rows = made.maker.rows(0)
    tokens = int((rows.text > 0).sum())
    counts = ", ".join(f"{name} {count:,}" for name, count in sequences.counts.items())
    return "\n".join(
        [
            f"# {model_key(config, sequences.digest)}",
            config.to_yaml(),
            f"data: {sequences.name}: {counts}",
            f"model: {section.model.layers} layers, {parameters(made.student):,} parameters, "
            f"{len(made.prompts.items)} items in the head",
            f"work: {section.epochs} epochs of about {len(rows)} rows, {tokens:,} tokens each",
        ]
    )


def model_key(config: LayerSelectConfig, data: str) -> str:
    """Digest of all that decides the model: the events, the prompts, `pretrain:`."""
    asked = build.questions(config)
    return digest_of(
        [
            FORMAT_VERSION,
            data,
            config.digest(["pretrain"]),
            asked.prompt.to_dict(),
            [asked.question, list(asked.answers), asked.max_history, asked.max_tokens],
        ]
    )


def parameters(module: torch.nn.Module) -> int:
    """Their number."""
    return sum(p.numel() for p in module.parameters())


def no_teacher(compared: Json) -> str:
    """The refusal of a decoder that does not beat popularity."""
    name = teacher.WATCHED
    own, popular = compared["metrics"][name], compared["popularity"][name]
    found = compared["difference"][name]
    return (
        f"the pretrained decoder is no teacher: {name} {own:.4f} against {popular:.4f} by "
        f"popularity on {compared['samples']:,} {compared['part']} samples, difference "
        f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]; the interval must lie "
        "above 0. Train longer (--set pretrain.epochs=…), with another rate (--set pretrain.lr=…), "
        "or on more users (--set data.users=…); nothing was kept"
    )


def on_worker(worker: Worker, argument: Json) -> Json:
    """Train, compare and save, on one of the workers of a run.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`, the whole configuration; `tokenizer`, its JSON; `data`, the digest of
            the histories; `infnet_data`, for named sources; `model`, where the folder goes.

    Raises:
        ConfigError: bad input, or the data here are not those of `data`.
    """
    use_data_root(argument["infnet_data"])
    config = validate(LayerSelectConfig, argument["config"], where="the configuration of the run")
    section = build.section(config)
    if worker.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_worker)))
    made = build.build(config, argument["tokenizer"])
    if made.sequences.digest != argument["data"]:
        raise ConfigError(
            f"{made.sequences.name} differs between the machines of the run: {argument['data']} "
            f"where it was started, {made.sequences.digest} on worker {worker.rank}; give all "
            "workers the same files"
        )
    trained = loop.fit(worker, section, made.student, made.maker)
    student = made.student.eval()
    item_head = written_projection(student.projection)
    compared = teacher.compare(
        worker,
        Decoder(student.model),
        made.ranking(item_head),
        replicates=section.bootstrap,
        seed=section.seed,
    )
    if worker.rank == 0:
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            save(Path(folder), made, item_head)
            storage.remove(argument["model"])
            storage.put(Path(folder), argument["model"])
    worker.barrier()
    return {
        **trained,
        "compared": compared,
        "parameters": parameters(student),
        "peak_memory_bytes": peak_memory_of(worker),
    }


def save(folder: Path, made: build.Made, item_head: bytes) -> None:
    """An ordinary Hugging Face folder, with the item head beside the weights."""
    made.student.model.cpu().save_pretrained(folder)
    made.tokenizer.save_pretrained(str(folder))
    (folder / ITEM_HEAD).write_bytes(item_head)
