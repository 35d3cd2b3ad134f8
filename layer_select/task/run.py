"""`open_task`: the batches and the objective of a task, for one checkpoint."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from layer_select.decoder import Decoder
from layer_select.task.batch import TaskBatch
from layer_select.task.config import SequenceData, Task
from layer_select.task.head import HeadObjective, mean_embeddings, read_projection
from layer_select.task.likelihood import LikelihoodObjective
from layer_select.task.objective import Objective
from layer_select.task.prompts import Prompts
from layer_select.task.rating import RatingHead, RatingObjective
from layer_select.task.samples import Part, Sample, draw
from layer_select.task.yes_no import YesNoObjective
from rayrun.config import Json, digest_of
from rayrun.data.sequences import Sequences, open_sequences

ASKING = ("yes_no", "rating")
"""Types whose prompt ends with a question about an item."""

EXAMPLES = 2
"""Prompts that `describe` shows."""

METRIC = {
    "head": ("ndcg@10", True),
    "yes_no": ("accuracy", True),
    "likelihood": ("token_nll", False),
    "rating": ("squared_error", False),
}
"""Type → the metric that a task is judged by, and whether higher is better."""


def open_task(
    data: SequenceData,
    task: Task,
    *,
    tokenizer: Any,
    vocab_size: int,
    item_head: bytes | None = None,
    rating_head: bytes | None = None,
) -> "RecommendationTask":
    """Read the histories and cut the samples of a task.

    Args:
        data: whose histories.
        task: what is asked.
        tokenizer: the checkpoint's.
        vocab_size: rows of the checkpoint's input embedding.
        item_head: content of `item_head.safetensors` beside the checkpoint, or None: P = identity.
        rating_head: content of `rating_head.safetensors`; ratings need one for an objective.

    Raises:
        ConfigError: no data, a part without samples, calibration that overlaps another part, a
            tokenizer of another model, or a title longer than a prompt may be.
    """
    sequences = open_sequences(data)
    prompts = Prompts(tokenizer, vocab_size, task, sequences.titles)
    return RecommendationTask(task, sequences, prompts, item_head, rating_head)


class RecommendationTask:
    """Samples of one task, cut into fixed batches."""

    def __init__(
        self,
        task: Task,
        sequences: Sequences,
        prompts: Prompts,
        item_head: bytes | None = None,
        rating_head: bytes | None = None,
    ) -> None:
        """Draw the samples; see `open_task`."""
        self.task, self.sequences, self.prompts = task, sequences, prompts
        self._item_head, self._rating_head = item_head, rating_head
        self.samples = draw(sequences, task)
        self.metric, self.higher_is_better = METRIC[task.type]

    @functools.cached_property
    def digest(self) -> str:
        """`sha256:…` of what decides a loss beside the model: events, samples, tokens, heads."""
        return digest_of(
            [
                self.sequences.digest,
                self.task.to_dict(),
                self.prompts.items,
                self.prompts.titles,
                self.prompts.questions,
                self.prompts.answers,
                [*self.prompts.before, *self.prompts.after],
                *self._of_ratings,
                *self._of_items,
            ]
        )

    @property
    def _of_ratings(self) -> list[Json]:
        """Nothing but for ratings: other tasks keep the digest they had before there were any."""
        if self.task.type != "rating":
            return []
        head = self._rating_head
        digest = None if head is None else hashlib.sha256(head).hexdigest()
        return [{"rated": self.prompts.rated, "rating_head": digest}]

    @property
    def _of_items(self) -> list[Json]:
        if self.task.type != "head" or self._item_head is None:
            return []
        return [{"item_head": hashlib.sha256(self._item_head).hexdigest()}]

    def samples_of(self, part: Part, shuffled_targets: bool = False) -> list[Sample]:
        """The samples of a part; `shuffled_targets` deals their targets out anew."""
        samples = self.samples[part]
        if not shuffled_targets:
            return samples
        order = np.random.default_rng([self.task.seed, 1]).permutation(len(samples))
        return [
            replace(s, item=self._item(s, other), label=other.label)
            for s, other in zip(samples, (samples[i] for i in order), strict=True)
        ]

    def _item(self, own: Sample, other: Sample) -> int:
        # A question keeps its item: its target is the answer.
        return own.item if self.task.type in ASKING else other.item

    def batches(self, part: Part, shuffled_targets: bool = False) -> list[TaskBatch]:
        """Micro-batches of a part, always the same: by length, then by number of the sample.

        Padding is on the left. With `shuffled_targets` the prompts keep their place and the
        targets are exchanged between them: whatever is then learnt about layers is noise.
        """
        samples = self.samples_of(part, shuffled_targets)
        rows = [self._row(sample) for sample in samples]
        order = sorted(range(len(rows)), key=lambda n: (len(rows[n]), n))
        size = self.task.micro_batch
        return [
            self._batch([(n, samples[n], rows[n]) for n in order[start : start + size]])
            for start in range(0, len(order), size)
        ]

    def objective(self, decoder: Decoder) -> Objective:
        """Losses and metrics by this decoder's embedding and output head.

        Raises:
            ConfigError: `item_head.safetensors` is damaged or of another width;
                `rating_head.safetensors` too, or it is not there or of another kind.
        """
        if self.task.type == "rating":
            width = decoder.body.embed_tokens.weight.shape[1]
            return RatingObjective(self.rating_head(width, "the model").to(decoder.device))
        if self.task.type == "yes_no":
            return YesNoObjective(decoder, self.prompts.answers)
        if self.task.type == "likelihood":
            return LikelihoodObjective(decoder)
        with torch.no_grad():
            vectors = mean_embeddings(decoder.body.embed_tokens, self.prompts.titles)
            if self._item_head is not None:
                projection = read_projection(self._item_head, vectors.shape[1])
                vectors = vectors @ projection.to(vectors)
        return HeadObjective(vectors)

    def rating_head(self, width: int, where: str) -> RatingHead:
        """The head that ratings are read by.

        Args:
            width: D of the model.
            where: how messages call the model.

        Raises:
            ConfigError: there is none, it is damaged, or of another kind or width.
        """
        assert self.task.type == "rating"
        return RatingHead.read(self._rating_head, self.task.head, width, where)

    def describe(self) -> Json:
        """For reports: counts, what item vectors are made of, and a few prompts with targets."""
        part: Part = "test" if self.samples["test"] else "calibration"
        head = "mean title embedding" + (
            " · P" if self._item_head is not None else ", P = identity"
        )
        return {
            "type": self.task.type,
            "source": self.sequences.name,
            "samples": {name: len(found) for name, found in self.samples.items()},
            "counts": self.sequences.counts,
            "item_vectors": head if self.task.type == "head" else None,
            "examples": [
                {
                    "prompt": self.prompts.text(self._prompt(sample)),
                    "item": self.sequences.titles[sample.item],
                    "label": sample.label,
                }
                for sample in self.samples[part][:EXAMPLES]
            ],
        }

    def _prompt(self, sample: Sample) -> list[int]:
        asked = sample.item if self.task.type in ASKING else None
        return self.prompts.of(sample.history, asked, sample.ratings)

    def _row(self, sample: Sample) -> list[int]:
        prompt = self._prompt(sample)
        return prompt + self.prompts.items[sample.item] if self._continues else prompt

    @property
    def _continues(self) -> bool:
        return self.task.type == "likelihood"

    def _batch(self, rows: Sequence[tuple[int, Sample, list[int]]]) -> TaskBatch:
        ids, mask = left_padded([row for _, _, row in rows])
        target_ids = target_valid = None
        if self._continues:
            target_ids, there = left_padded([self.prompts.items[s.item] for _, s, _ in rows])
            target_valid = there.bool()
        answers = self.task.type == "yes_no"
        rating = None
        if self.task.type == "rating":
            rating = torch.tensor([float(s.label) for _, s, _ in rows])
        return TaskBatch(
            ids=ids,
            mask=mask,
            sample=torch.tensor([number for number, _, _ in rows]),
            target=torch.tensor([s.label if answers else s.item for _, s, _ in rows]),
            target_ids=target_ids,
            target_valid=target_valid,
            rating=rating,
        )


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask. What stands at padding is never seen; 0 is a token of any vocabulary."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        if row:
            ids[number, length - len(row) :] = torch.tensor(row)
            mask[number, length - len(row) :] = 1
    return ids, mask
