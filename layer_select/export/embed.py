"""`layer-select embed`: vectors of items and users as Parquet, for other models to read.

    out/items.parquet      item, title, vector (list<float32>): v_i, mean title embedding · P
        users.parquet      user, vector: h after the user's training history
        result.json  report.html  manifest.json

Both serve as `pretrained` features of infnet. While it runs, finished parts stand beside it in
`<out>.embedding/`: a second call goes on there. Shapes: B rows, D width.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.export.bundle import MODEL, Bundle, HistoryPrompt
from layer_select.export.ranking import held_bytes, hidden_of, in_one_process
from layer_select.export.run import open_recommender, to_export
from layer_select.opened import Opened, decoder_of, open_on_worker
from layer_select.places import data_root
from layer_select.task.batch import TaskBatch
from layer_select.task.head import ITEM_HEAD, mean_embeddings, read_projection
from layer_select.task.run import left_padded
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json, digest_of
from rayrun.data.sequences import Ints
from rayrun.metrics import Result
from rayrun.ray.session import session
from rayrun.ray.train import run as run_on_ray
from rayrun.ray.worker import Worker, peak_memory_of
from rayrun.replacing import refuse_strangers
from rayrun.report import Report

KIND = "layer_select.vectors"
FORMAT_VERSION = 1
ITEMS, USERS = "items", "users"
ITEMS_AT_ONCE = 4096
BATCHES_AT_ONCE = 8
"""Micro-batches of users in one part: rows are sorted by length within it."""
MAX_FAILURES = 2
"""Worker deaths survived; finished parts are kept."""


def embed(config: LayerSelectConfig, out: str) -> Result:
    """Write the vectors, on `compute.workers` workers; they appear whole or not at all.

    Memory holds a model and one part of rows, whatever the number of items and users. A call that
    was interrupted is continued by the same call; one that finds the same vectors at `out` returns
    their result.

    Args:
        config: the whole run; of `inputs.bundle`, `inputs.student` and the full model, the first
            that is given.
        out: output directory, a path or `s3://` URI that all workers reach.

    Returns:
        `result.json`; under `details` the numbers of `items` and `users`, their `width`, and the
        users that have no training history, who get no vector.

    Raises:
        ConfigError: no model or a damaged one, another task than `head`, or a bundle that asks
            otherwise than `task:`.
        RuntimeError: workers failed more than twice; the same call continues.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    with storage.claim(out):
        refuse_strangers(out)
        with session(config.compute):
            config = _with_model(config, out)
            opened = open_recommender(config)
            key = _key(config, opened)
            if manifest.stands(out, kind=KIND, key=key):
                return Result.read(out)
            state = f"{out}.embedding"
            parts = storage.join(state, key.removeprefix("sha256:")[:16])
            found = run_on_ray(
                on_worker,
                {
                    "config": config.to_dict(),
                    "task": opened.task.digest,
                    "infnet_data": data_root(),
                    "parts": parts,
                },
                compute=config.compute,
                storage_path=storage.join(state, "ray"),
                name=key.removeprefix("sha256:")[:16],
                max_failures=MAX_FAILURES,
                title="embedding",
            )
        result = _finish(config, out, opened, key, parts, started, found)
        storage.remove(state)
    return result


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the model, and how many vectors of which width.

    Raises:
        ConfigError: bad configuration, model or data.
    """
    lines = [f"# {config.digest(['data', 'task', 'embed'])}", config.to_yaml()]
    inputs = config.inputs
    if config.model is None and not (inputs.model or inputs.student or inputs.bundle):
        lines.append("model: none is named; embed makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    opened = open_recommender(_with_model(config, out))
    width = int(opened.checkpoint.config.hidden_size)
    rows = _Rows(config, opened)
    users = len(rows.users) if config.embed.users else 0
    lines += [
        f"model: {opened.checkpoint.where}",
        f"vectors: {len(opened.task.sequences.items):,} items, {users:,} users, width {width}",
        f"parts: {sum(1 for _ in rows.parts())} on {config.compute.workers} workers",
    ]
    return "\n".join(lines)


def on_worker(worker: Worker, argument: Json) -> Json:
    """Write this worker's share of the parts, those that stand already left out.

    Args:
        worker: of the run; a `SingleWorker` needs no Ray.
        argument: `config`; `task`, the digest of the task where the run was started; `infnet_data`,
            for named sources; `parts`, where they go.

    Returns:
        `written`, the parts that this worker wrote, and `peak_memory_bytes`.

    Raises:
        ConfigError: bad input, or the data here are others than where the run was started.
    """
    config, opened = open_on_worker(worker, argument, argument["task"])
    rows = _Rows(config, opened)
    mine = list(rows.parts())[worker.rank :: worker.world_size]
    places = [storage.join(argument["parts"], _name(kind, start)) for kind, start, _ in mine]
    missing = [(*part, at) for part, at in zip(mine, places, strict=True) if not storage.exists(at)]
    if missing:
        decoder = decoder_of(
            opened.checkpoint,
            in_one_process(config.score.execution),
            dtype=config.score.dtype,
            device=worker.device,
            attention="sdpa",
        )
        for done, (kind, start, stop, place) in enumerate(missing):
            table = _table(rows, decoder, kind, start, stop)
            with storage.open(place, "wb") as file:
                pq.write_table(table, file)
            worker.progress(done + 1, len(missing), kind)
    return {"written": len(missing), "peak_memory_bytes": peak_memory_of(worker)}


# ---------------------------------------------------------------------------------------------


def _with_model(config: LayerSelectConfig, out: str) -> LayerSelectConfig:
    if not config.inputs.bundle:
        return to_export(config, out)
    bundle, task = Bundle.read(config.inputs.bundle), config.task
    own = HistoryPrompt(
        prompt=task.prompt, max_history=task.max_history, max_tokens=task.max_tokens
    )
    if own != bundle.prompt:
        raise ConfigError(
            f"task: {own.to_dict()} must be how the bundle {config.inputs.bundle} asks, which is "
            f"{bundle.prompt.to_dict()}; give embed the bundle's directory as its CONFIG"
        )
    model = storage.join(config.inputs.bundle, MODEL)
    inputs = config.inputs.model_copy(update={"model": model})
    return config.model_copy(update={"inputs": inputs})


def _key(config: LayerSelectConfig, opened: Opened) -> str:
    head = opened.checkpoint.file(ITEM_HEAD)
    decide = config.digest(["embed", "score.dtype"])
    return digest_of([FORMAT_VERSION, opened.digests, None if head is None else head.hex(), decide])


class _Rows:
    """What gets a vector, cut into parts that are the same for any number of workers."""

    def __init__(self, config: LayerSelectConfig, opened: Opened) -> None:
        self.config, self.opened = config, opened

    @functools.cached_property
    def histories(self) -> list[Ints]:
        """Items that training may see, of every user."""
        return self.opened.task.sequences.training()

    @functools.cached_property
    def users(self) -> list[int]:
        """Users that training has seen something of."""
        return [n for n, items in enumerate(self.histories) if len(items)]

    def parts(self) -> Iterator[tuple[str, int, int]]:
        """Kind, first and last row (exclusive) of every part."""
        counts = [(ITEMS, len(self.opened.task.sequences.items), ITEMS_AT_ONCE)]
        if self.config.embed.users:
            step = self.config.task.micro_batch * BATCHES_AT_ONCE
            counts.append((USERS, len(self.users), step))
        for kind, count, step in counts:
            for start in range(0, count, step):
                yield kind, start, min(start + step, count)


def _name(kind: str, start: int) -> str:
    return f"{kind}-{start:012d}.parquet"


def _table(rows: _Rows, decoder: Decoder, kind: str, start: int, stop: int) -> pa.Table:
    config, opened = rows.config, rows.opened
    sequences = opened.task.sequences
    if kind == ITEMS:
        vectors = _item_vectors(opened, decoder, start, stop)
        named: dict[str, Sequence[str]] = {
            "item": sequences.items[start:stop],
            "title": sequences.titles[start:stop],
        }
    else:
        users = rows.users[start:stop]
        vectors = _user_vectors(rows, decoder, users)
        named = {"user": [sequences.users[user] for user in users]}
    if config.embed.normalise:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    if not vectors.isfinite().all():
        raise ConfigError(
            f"{opened.checkpoint.where}: the model gives {kind} vectors that are not finite; is it "
            "damaged, or too large for score.dtype: bfloat16 or float32?"
        )
    width = vectors.shape[1]
    offsets = pa.array(range(0, len(vectors) * width + 1, width), pa.int32())
    numbers = pa.array(vectors.flatten().numpy(), pa.float32())
    columns: dict[str, Any] = {name: pa.array(list(v), pa.string()) for name, v in named.items()}
    return pa.table({**columns, "vector": pa.ListArray.from_arrays(offsets, numbers)})


@torch.no_grad()
def _item_vectors(opened: Opened, decoder: Decoder, start: int, stop: int) -> Float[Tensor, "B D"]:
    titles = opened.task.prompts.titles[start:stop]
    vectors = mean_embeddings(decoder.body.embed_tokens, titles)
    if (head := opened.checkpoint.file(ITEM_HEAD)) is not None:
        vectors = vectors @ read_projection(head, vectors.shape[1]).to(vectors)
    return vectors.float().cpu()


def _user_vectors(rows: _Rows, decoder: Decoder, users: Sequence[int]) -> Float[Tensor, "B D"]:
    task, prompts = rows.config.task, rows.opened.task.prompts
    asked = [prompts.of(rows.histories[user][-task.max_history :]) for user in users]
    order = sorted(range(len(asked)), key=lambda n: len(asked[n]))
    batches: list[TaskBatch] = []
    for at in range(0, len(order), task.micro_batch):
        some = torch.tensor(order[at : at + task.micro_batch])
        ids, mask = left_padded([asked[n] for n in some.tolist()])
        batches.append(TaskBatch(ids=ids, mask=mask, sample=some, target=torch.zeros_like(some)))
    hidden, _ = hidden_of(decoder, batches, held_bytes(rows.config.score.execution))
    return hidden


def _finish(
    config: LayerSelectConfig,
    out: str,
    opened: Opened,
    key: str,
    parts: str,
    started: float,
    found: Json,
) -> Result:
    sequences, rows = opened.task.sequences, _Rows(config, opened)
    details: Json = {
        "items": len(sequences.items),
        "users": len(rows.users) if config.embed.users else 0,
        "users_without_history": len(sequences.users) - len(rows.users),
        "width": int(opened.checkpoint.config.hidden_size),
    }
    with storage.output(out) as staging:
        for kind in dict.fromkeys(kind for kind, _, _ in rows.parts()):
            starts = [start for of, start, _ in rows.parts() if of == kind]
            _joined([storage.join(parts, _name(kind, start)) for start in starts], staging / kind)
        result = Result.of(
            "embed",
            config,
            started=started,
            rows=details["items"] + details["users"],
            peak_memory_bytes=int(found["peak_memory_bytes"]),
            details=details,
        )
        result.write(staging)
        _report(config, details).write(str(staging / "report.html"))
        manifest.write(
            staging,
            kind=KIND,
            format_version=FORMAT_VERSION,
            config=config,
            inputs=_inputs(config, opened),
            info={"key": key, **details},
        )
    return result


def _inputs(config: LayerSelectConfig, opened: Opened) -> dict[str, str]:
    own = {"data": opened.task.sequences.digest, "model": opened.digests["model"]}
    if config.inputs.bundle:
        own["bundle"] = manifest.content_of(config.inputs.bundle)
    return own


def _joined(places: Sequence[str], target: Path) -> None:
    """One file of all parts, one part in memory at a time."""
    writer: Any = None
    for place in places:
        with storage.open(place) as file:
            table = pq.read_table(file)
        writer = writer or pq.ParquetWriter(target.with_suffix(".parquet"), table.schema)
        writer.write_table(table)
    writer.close()


def _report(config: LayerSelectConfig, details: Json) -> Report:
    page = Report(f"Vectors of {config.name}", subtitle=f"configuration {config.digest()}")
    page.table(["what", "count"], [[name, count] for name, count in details.items()])
    page.heading("As features of infnet")
    page.text(
        "```yaml\nfeatures:\n"
        "  title: {type: pretrained, column: ITEM_COLUMN, path: OUT/items.parquet, key: item, "
        f"width: {details['width']}}}\n"
        "  taste: {type: pretrained, column: USER_COLUMN, path: OUT/users.parquet, key: user, "
        f"width: {details['width']}}}\n```"
    )
    page.heading("Configuration")
    page.details("config.yaml", config.to_yaml())
    return page
