"""`layer-select export`: a recommender → a bundle to serve (`layer_select.export.bundle`).

Nothing is published that has not been read back: the Hugging Face folder by `transformers` alone,
the GGUF file by our reader, and both must recommend as the source does.
"""

import time
from pathlib import Path
from typing import Any

import torch

from layer_select.compact.origin import Origin
from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.export import bundle as layout
from layer_select.export import item_vectors
from layer_select.export.answer import answered
from layer_select.export.bundle import Bundle, HistoryPrompt
from layer_select.export.modelfile import Beside
from layer_select.export.models import WRITTEN, beside_source, refuse_unsayable, write_models
from layer_select.export.ranking import (
    Ranking,
    held_bytes,
    hidden_of,
    in_one_process,
    last_hidden,
    ranking,
)
from layer_select.export.report import report
from layer_select.keys import heads_of
from layer_select.opened import DTYPES, Opened, decoder_of, open_inputs, with_model
from layer_select.serve.config import Faiss
from layer_select.serve.index import FaissIndex
from layer_select.sources import Checkpoint, Gguf, HuggingFace
from layer_select.sources.huggingface_write import planned_tensors
from layer_select.sources.skeleton import BUILDING
from layer_select.task.batch import TaskBatch
from layer_select.task.head import HeadObjective
from layer_select.task.samples import Part
from rayrun import manifest, storage
from rayrun.config import ConfigError, Json
from rayrun.metrics import Result
from rayrun.replacing import refuse_strangers

TASK = "next_item"
GGUF_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PARTS: tuple[Part, ...] = ("test", "validation", "calibration")


def export(config: LayerSelectConfig, out: str) -> Result:
    """Write `inputs.student`, or else the full model, as a bundle; it appears whole or not at all.

    Every form is read back and ranks the full catalogue for all test samples. A form that keeps
    every number must rank as the source does; what a form that rounds loses stands in the result.

    Args:
        config: the whole run; `export:` says which forms.
        out: output directory, a path or `s3://` URI.

    Returns:
        `result.json`: ranking metrics of what the bundle recommends, those of the source and of the
        GGUF file under `baselines`; under `details` how far they are apart, the effect of the type
        of the item vectors, and sizes.

    Raises:
        ConfigError: no model or a damaged one, another task than `head`, a model that GGUF cannot
            say, or `out` holds something else.
        RuntimeError: a form that keeps every number ranks otherwise than the source.
    """
    started = time.monotonic()
    out = storage.absolute(out)
    with storage.claim(out):
        refuse_strangers(out)
        beside = beside_source(config)
        config = to_export(config, out)
        opened = open_recommender(config)
        refuse_unsayable(config, opened.checkpoint)
        with storage.output(out) as staging:
            result = _Export(config, opened, beside or opened.checkpoint.file, staging).run(started)
    return result


def to_export(config: LayerSelectConfig, out: str) -> LayerSelectConfig:
    """The configuration whose model is what leaves: the smaller one, where there is one.

    Raises:
        ConfigError: there is no model; see `with_model`.
    """
    if not config.inputs.student:
        return with_model(config, out)
    inputs = config.inputs.model_copy(update={"model": config.inputs.student})
    return config.model_copy(update={"inputs": inputs})


def open_recommender(config: LayerSelectConfig) -> Opened:
    """The model and its task.

    Raises:
        ConfigError: as `open_inputs`; or the task is no ranking of the catalogue.
    """
    if config.task.type != "head":
        raise ConfigError(
            f"task.type must be head: item vectors and h rank the catalogue of a bundle; found "
            f"{config.task.type!r}; --set task.type=head"
        )
    return open_inputs(config)


def plan(config: LayerSelectConfig, out: str) -> str:
    """What `--dry-run` prints: the model, the forms and what is checked.

    Raises:
        ConfigError: bad configuration, model or data, or a model that GGUF cannot say.
    """
    section = config.export
    lines = [f"# {config.digest(['data', 'task', 'export'])}", config.to_yaml()]
    if config.model is None and not config.inputs.model and not config.inputs.student:
        lines.append("model: none is named; export makes the one of pretrain: first, or finds it")
        return "\n".join(lines)
    config = to_export(config, out)
    opened = open_recommender(config)
    refuse_unsayable(config, opened.checkpoint)
    tensors = planned_tensors(opened.checkpoint, WRITTEN[section.dtype])
    part = _part(opened)
    lines += [
        f"model: {opened.checkpoint.where}, {opened.checkpoint.config.num_hidden_layers} layers",
        f"{layout.MODEL}/: {storage.human(sum(tensor.bytes for tensor in tensors))} of weights",
        f"{layout.GGUF}: {section.gguf}",
        f"item vectors: {len(opened.task.sequences.titles):,} in {section.vectors}"
        + (", indexed" if len(opened.task.sequences.titles) > section.index_above else ""),
        f"checked on: {len(opened.task.samples[part])} {part} samples, in every form",
    ]
    return "\n".join(lines)


class _Export:
    """One export into a staging directory."""

    def __init__(
        self, config: LayerSelectConfig, opened: Opened, beside: Beside, staging: Path
    ) -> None:
        self.config, self.opened, self.staging = config, opened, staging
        self.beside = beside
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.execution = in_one_process(config.score.execution)
        self.part: Part = _part(opened)
        self.batches = opened.task.batches(self.part)

    def run(self, started: float) -> Result:
        """Write, read back, compare, tell."""
        source = self.opened.checkpoint
        written = write_models(self.config, source, self.beside, self.staging)
        exact = self._ranked(self._source())
        decoder = self._folder()
        one = self._one()
        hidden, target = self._hidden(decoder)
        vectors = self._vectors(decoder)
        content = item_vectors.written(vectors, self.config.export.vectors)
        kept = item_vectors.read(content, item_vectors.FILE)
        plain, found = ranking(hidden, target, vectors), ranking(hidden, target, kept)
        compared: dict[str, Json] = {
            layout.MODEL: {
                "lossless": _keeps(source, WRITTEN[self.config.export.dtype]),
                **plain.compared(exact),
            },
            "item vectors": {
                "lossless": self.config.export.vectors == "float32",
                **found.compared(plain),
            },
        }
        _check(compared)
        sample = self._sample(last_hidden(decoder, one)[0] @ kept.T)
        self._write_parts(content, sample)
        if len(kept) > self.config.export.index_above:
            threads = torch.get_num_threads()
            FaissIndex(kept.numpy(), Faiss(), threads=threads).write(self.staging / layout.INDEX)
        sealed = self._seal()
        bundle = Bundle.read(str(self.staging))
        bundle.check_sample(answered(bundle, decoder))
        del decoder
        rankings = {"source": exact}
        if bundle.gguf is not None:
            decoder = self._decoder(Gguf(path=str(bundle.gguf)).open())
            rankings["gguf"] = ranking(*self._hidden(decoder), kept)
            lossless = _keeps(written, GGUF_DTYPES.get(self.config.export.gguf, torch.int8))
            compared[layout.GGUF] = {"lossless": lossless, **rankings["gguf"].compared(found)}
            _check(compared)
            if lossless:
                bundle.check_sample(answered(bundle, decoder))
        details: Json = {
            "digest": sealed.content_digest,
            "model": source.digest,
            "layers": source.config.num_hidden_layers,
            "parameters": sum(torch.Size(t.shape).numel() for t in planned_tensors(written)),
            "compared": compared,
            "vectors": {"items": len(kept), "width": kept.shape[1], "bytes": len(content)},
            "bytes": self._bytes(),
        }
        return self._tell(started, found, rankings, details, sample)

    def _write_parts(self, vectors: bytes, sample: Json) -> None:
        task, sequences = self.config.task, self.opened.task.sequences
        layout.write_parts(
            self.staging,
            items=sequences.items,
            titles=sequences.titles,
            vectors=vectors,
            prompt=HistoryPrompt(
                prompt=task.prompt, max_history=task.max_history, max_tokens=task.max_tokens
            ),
            sample=sample,
        )

    def _seal(self) -> manifest.Manifest:
        source = self.opened.checkpoint
        origin = Origin.of(source)
        info: Json = {
            "model": source.digest,
            "layers": source.config.num_hidden_layers,
            "origin": None if origin is None else origin.to_dict(),
        }
        return manifest.write(
            str(self.staging),
            kind=layout.KIND,
            format_version=layout.FORMAT_VERSION,
            config=self.config,
            inputs={
                "data": self.opened.task.sequences.digest,
                "model": source.digest,
                **heads_of(source),
            },
            info=info,
            exclude=(manifest.CONFIG_FILE, "result.json", "report.html"),
        )

    # -- reading back

    def _source(self) -> Decoder:
        return self._decoder(self.opened.checkpoint)

    def _decoder(self, checkpoint: Checkpoint) -> Decoder:
        return decoder_of(
            checkpoint, self.execution, dtype=self.config.score.dtype, device=self.device
        )

    def _folder(self) -> Decoder:
        """The folder as anybody else loads it; block by block where it does not fit."""
        from transformers import AutoModelForCausalLM

        folder = self.staging / layout.MODEL
        if self.execution.type != "whole":
            return self._decoder(HuggingFace(path=str(folder)).open())
        with BUILDING:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[self.config.score.dtype],
                attn_implementation="eager",
                local_files_only=True,
            )
        decoder = Decoder(model.to(self.device))
        if self.config.score.dtype == "float64":  # grouped products of experts know no float64
            decoder.config._experts_implementation = "eager"
        return decoder

    def _hidden(self, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden_of(decoder, self.batches, held_bytes(self.execution))

    def _vectors(self, decoder: Decoder) -> torch.Tensor:
        objective = self.opened.task.objective(decoder)
        assert isinstance(objective, HeadObjective), "checked by open_recommender"
        return objective.vectors.detach().float().cpu()

    def _ranked(self, decoder: Decoder) -> Ranking:
        return ranking(*self._hidden(decoder), self._vectors(decoder))

    def _one(self) -> TaskBatch:
        """The prompt of the sample, alone."""
        task = self.opened.task
        ids = torch.tensor([task.prompts.of(task.samples[self.part][0].history)])
        zero = torch.zeros(1, dtype=torch.int64)
        return TaskBatch(ids=ids, mask=torch.ones_like(ids), sample=zero, target=zero)

    def _sample(self, scores: torch.Tensor) -> Json:
        task = self.opened.task
        items = task.sequences.items
        history = [items[number] for number in task.samples[self.part][0].history.tolist()]
        answer = layout.top(items, task.sequences.titles, scores)
        return {"request": {"history": history, "k": len(answer)}, "answer": answer}

    # -- telling

    def _bytes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in storage.names(str(self.staging)):
            first = name.partition("/")[0]
            found[first] = found.get(first, 0) + (self.staging / name).stat().st_size
        return found

    def _tell(
        self,
        started: float,
        found: Ranking,
        rankings: dict[str, Ranking],
        details: Json,
        sample: Json,
    ) -> Result:
        result = Result.of(
            "export",
            self.config,
            started=started,
            split=self.part,
            metrics={TASK: dict(found.metrics)},
            baselines={name: {TASK: dict(of.metrics)} for name, of in rankings.items()},
            rows=len(found.rank),
            details=details,
        )
        result.write(str(self.staging))
        titles = dict(
            zip(self.opened.task.sequences.items, self.opened.task.sequences.titles, strict=True)
        )
        history = [titles[item] for item in sample["request"]["history"]]
        page = report(self.config, result, history, sample["answer"])
        page.write(str(self.staging / "report.html"))
        return result


# ---------------------------------------------------------------------------------------------


def _part(opened: Opened) -> Part:
    """The samples that forms are compared on."""
    return next(part for part in PARTS if opened.task.samples[part])


def _keeps(checkpoint: Checkpoint, dtype: torch.dtype | None) -> bool:
    """Whether every number of the model can be written in `dtype` (None: its own)."""
    own = {info.dtype for info in checkpoint.shapes.values()}
    return dtype is None or all(torch.promote_types(one, dtype) == dtype for one in own)


def _check(compared: dict[str, Json]) -> None:
    for form, found in compared.items():
        if found["lossless"] and found["identical"] < 1:
            raise RuntimeError(
                f"{form} keeps every number and must rank all {found['samples']} samples as its "
                f"source does, it does so for {found['identical']:.4f} of them; the largest "
                f"difference of two scores is {found['largest_difference']:.3g}; nothing was "
                "written"
            )
