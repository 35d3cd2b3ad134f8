"""A bundle of a model on disk, its sample answered by the task's own objective."""

import json
from pathlib import Path

import torch

from layer_select.config import LayerSelectConfig
from layer_select.export import bundle as layout
from layer_select.export import item_vectors
from layer_select.opened import open_inputs
from layer_select.serve.config import RecommenderServe
from layer_select.sources import load
from rayrun import manifest

OPTIONS = RecommenderServe(port=0, cpus_per_replica=0.5, start_timeout_s=120)


def write_bundle(config: LayerSelectConfig, model: Path, out: Path) -> Path:
    inputs = config.inputs.model_copy(update={"model": str(model)})
    opened = open_inputs(config.model_copy(update={"inputs": inputs}))
    decoder = load(opened.checkpoint)
    objective = opened.task.objective(decoder)
    batch = opened.task.batches("test")[0]
    with torch.no_grad():
        hidden = decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask)))
    scores = objective.scores(hidden)
    place = int(batch.sample[0])
    history = opened.task.samples["test"][place].history
    sequences = opened.task.sequences
    answer = layout.top(sequences.items, sequences.titles, scores[0])
    task = config.task
    (out / "model").mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".safetensors") and file.name not in (
            "manifest.json",
            "result.json",
        ):
            (out / "model" / file.name).write_bytes(file.read_bytes())
    layout.write_parts(
        out,
        items=sequences.items,
        titles=sequences.titles,
        vectors=item_vectors.written(objective.vectors),
        prompt=layout.HistoryPrompt(
            prompt=task.prompt, max_history=task.max_history, max_tokens=task.max_tokens
        ),
        sample={
            "request": {"history": [sequences.items[i] for i in history], "k": layout.TOP_K},
            "answer": answer,
        },
    )
    (out / "config.yaml").write_text(config.to_yaml())
    seal(out, config.to_dict())
    return out


def seal(out: Path, config: dict) -> None:
    """The manifest, as after an export."""
    kept = {"kind": layout.KIND, "format_version": layout.FORMAT_VERSION}
    manifest.write(str(out), **kept, config=config, exclude=("config.yaml",))


def body(**fields) -> bytes:
    return json.dumps(fields).encode()
