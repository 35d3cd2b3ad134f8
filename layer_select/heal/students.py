"""From a start to a student: its checkpoint, its layers in the full model, and the trained form."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layer_select.compact.origin import Origin
from layer_select.compact.view import Compacted
from layer_select.config import LayerSelectConfig
from layer_select.decoder import Decoder
from layer_select.heal.config import Narrow
from layer_select.heal.recommender import Recommender
from layer_select.heal.start import Cut, Folder, Random
from layer_select.opened import Opened
from layer_select.sources import Checkpoint, Info, load, open_model
from layer_select.sources.skeleton import BUILDING, skeleton, tied_names
from layer_select.sources.view import View
from layer_select.task.head import ITEM_HEAD, read_projection, written_projection
from layer_select.task.rating import RATING_HEAD, ROWS, RatingHead
from rayrun.config import ConfigError, Json
from rayrun.ray.worker import Worker

SCALE = 2.0
"""P of a random student: with rows of unit length, scores of items spread near 1 at once."""


@dataclass(frozen=True)
class Begun:
    """A student before healing."""

    checkpoint: Checkpoint
    """Of its weights; of a random student, of the teacher's: configuration and tokenizer count."""
    origin: Origin | None
    """None: no layer of it is one of the full model (narrow)."""
    random: bool

    @property
    def kept(self) -> tuple[int, ...]:
        """Its layers in the full model; none of a narrow student."""
        return () if self.origin is None else self.origin.kept


def begin(start: Cut | Folder | Random | Narrow, teacher: Checkpoint) -> Begun:
    """Open what a student begins as; headers only.

    Raises:
        ConfigError: layers that are not there, or a smaller model that is not of this teacher.
    """
    layers = teacher.config.num_hidden_layers
    if isinstance(start, Narrow):
        return Begun(_Shaped(teacher, _llama(start, teacher.config)), None, True)
    if isinstance(start, Folder):
        checkpoint = open_model(None, start.place)
        return Begun(checkpoint, _origin_of(checkpoint, teacher), False)
    source = teacher
    before = Origin(model=teacher.digest, num_layers=layers, kept=tuple(range(layers)))
    if isinstance(start, Cut) and start.model:
        source = open_model(None, start.model)
        before = _origin_of(source, teacher)
    checkpoint = Compacted(source, start.kept)
    origin = before.model_copy(update={"kept": tuple(before.kept[i] for i in start.kept)})
    return Begun(checkpoint, origin, isinstance(start, Random))


def _origin_of(checkpoint: Checkpoint, teacher: Checkpoint) -> Origin:
    origin = Origin.of(checkpoint)
    if origin is None:
        raise ConfigError(
            f"{checkpoint.where} has no compaction.json, so its layers' places in the full model "
            "are not known; give inputs.student the output of `layer-select compact` or `heal`"
        )
    if origin.model != teacher.digest:
        raise ConfigError(
            f"{checkpoint.where} is made of another model: {origin.model}, the teacher "
            f"{teacher.where} is {teacher.digest}; give the model it was made of as inputs.model"
        )
    return origin


def student_of(begun: Begun, opened: Opened, *, seed: int, device: torch.device) -> Recommender:
    """The student in memory, in float32.

    Raises:
        ConfigError: a tensor cannot be read, or P is of another width.
    """
    from transformers import AutoModelForCausalLM

    prompts, width = opened.task.prompts, int(begun.checkpoint.config.hidden_size)
    if not begun.random:
        decoder = load(begun.checkpoint, dtype=torch.float32, device=device, attention="sdpa")
        head = rating_head(begun.checkpoint, opened)
        return Recommender(
            decoder, projection(begun.checkpoint), prompts.titles, prompts.answers, head
        )
    config = copy.deepcopy(begun.checkpoint.config)
    with BUILDING:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
    embed: Any = model.get_input_embeddings()
    with torch.no_grad():
        embed.weight.normal_(std=width**-0.5)
    identity = SCALE * torch.eye(width)
    decoder = Decoder(model.to(device))
    head, task = None, opened.task.task
    if task.type == "rating":
        head = RatingHead(torch.zeros(ROWS[task.head], width), torch.zeros(ROWS[task.head]))
    return Recommender(decoder, identity, prompts.titles, prompts.answers, head)


def teacher_of(opened: Opened, config: LayerSelectConfig, worker: Worker) -> Recommender:
    """The full model, in the precision of the run.

    Raises:
        ConfigError: a tensor cannot be read, or P is of another width.
    """
    dtype = torch.bfloat16 if config.heal.precision == "bf16" else torch.float32
    decoder = load(opened.checkpoint, dtype=dtype, device=worker.device, attention="sdpa")
    prompts = opened.task.prompts
    head = rating_head(opened.checkpoint, opened)
    found = Recommender(
        decoder, projection(opened.checkpoint), prompts.titles, prompts.answers, head
    )
    return found.to(worker.device).requires_grad_(False)


def projection(checkpoint: Checkpoint) -> Tensor:
    """P of a model; the identity where it has none.

    Raises:
        ConfigError: damaged, or of another width.
    """
    content, width = checkpoint.file(ITEM_HEAD), int(checkpoint.config.hidden_size)
    return torch.eye(width) if content is None else read_projection(content, width)


def rating_head(checkpoint: Checkpoint, opened: Opened) -> RatingHead | None:
    """The head of a task of ratings: the model's own, or else the teacher's; None for other tasks.

    Raises:
        ConfigError: there is none, it is damaged, or of another kind or width.
    """
    task = opened.task.task
    if task.type != "rating":
        return None
    content = checkpoint.file(RATING_HEAD) or opened.checkpoint.file(RATING_HEAD)
    width = int(checkpoint.config.hidden_size)
    return RatingHead.read(content, task.head, width, checkpoint.where)


class Healed(View):
    """A trained student as a checkpoint: its own weights and heads, else what it began as."""

    def __init__(self, begun: Begun, student: Recommender) -> None:
        """Weights are rounded to the types they had on disk, also in `student`: what is measured
        is what is written.
        """
        super().__init__(begun.checkpoint, begun.checkpoint.config)
        self._held: Mapping[str, Tensor] = student.model.state_dict()
        self._heads = {ITEM_HEAD: written_projection(student.projection)}
        if student.rating is not None:
            self._heads[RATING_HEAD] = student.rating.written()
        with torch.no_grad():
            for name, tensor in self._held.items():
                tensor.copy_(tensor.to(self.shapes[name].dtype))

    def info(self, name: str) -> Info:
        """See `View`."""
        return self.source.shapes[name]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """See `Checkpoint`."""
        held = self._held[name].detach().to("cpu", copy=True)
        return held.to(dtype or self.shapes[name].dtype).contiguous()

    def file(self, name: str) -> bytes | None:
        """See `Checkpoint`; heads are the trained ones."""
        return self._heads.get(name) or self.source.file(name)


class _Shaped(View):
    """A configuration of its own with the tokenizer of another model, and no weights yet."""

    def __init__(self, source: Checkpoint, config: Any) -> None:
        super().__init__(source, config)
        model = skeleton(config)
        self._own = {n: Info(tuple(t.shape), t.dtype) for n, t in model.state_dict().items()}
        assert not tied_names(model)

    def info(self, name: str) -> Info:
        """See `View`."""
        return self._own[name]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """There is none."""
        raise AssertionError(f"{name} of a student that was not trained yet")

    @property
    def digest(self) -> str:
        """Of the full model: nothing else decides a random student but its shape."""
        return self.source.digest

    def file(self, name: str) -> bytes | None:
        """The heads beside the full model are of its width, and not of this one."""
        return None if name.endswith("_head.safetensors") else self.source.file(name)


def _llama(shape: Narrow, of: Any) -> Any:
    from transformers.models.llama import LlamaConfig

    special: Json = {n: getattr(of, n, None) for n in ("bos_token_id", "eos_token_id")}
    return LlamaConfig(
        vocab_size=int(of.vocab_size),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=int(of.max_position_embeddings),
        pad_token_id=getattr(of, "pad_token_id", None),
        tie_word_embeddings=False,
        **special,
    )
