"""Healing: the learner whose losses are the objectives of `heal:`.

Shapes: K objectives.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layer_select.heal.batch import Numbered
from layer_select.heal.objectives.base import Base, Lesson
from layer_select.heal.recommender import Recommender
from layer_select.heal.teacher import Teacher
from layer_select.training.learner import Learner


class Healing(Learner):
    """A student beside its teacher."""

    def __init__(
        self,
        student: Recommender,
        objectives: Sequence[Base],
        teacher: Teacher,
        *,
        mapped: Mapping[int, int],
        task: str,
        decay: bool = True,
    ) -> None:
        """Args as in `Lesson`; `decay`: whether matrices of the layers are decayed."""
        super().__init__()
        self.student = student
        self._objectives = [o for o in objectives if o.weight]
        self.names = tuple(str(vars(o)["type"]) for o in self._objectives)
        self._teacher, self._mapped, self._task, self._decay = teacher, mapped, task, decay

    def counts(self, batch: Numbered) -> Float[Tensor, " K"]:
        """See `Learner`."""
        found = [o.targets(batch.rows, self._task).sum() for o in self._objectives]
        return torch.stack(found).float()

    def losses(self, rows: Numbered, counts: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """See `Learner`."""
        layers = list(self._mapped) if "hidden" in self.names else []
        seen = self.student.see(rows.rows, layers)
        lesson = Lesson(seen, self._teacher.said(rows), self._mapped, self._task)
        sums = torch.stack([objective.loss(lesson) for objective in self._objectives])
        return sums / counts.clamp(min=1)

    def weighted(self, losses: Float[Tensor, " K"]) -> Float[Tensor, ""]:
        """See `Learner`."""
        return (losses * torch.tensor([o.weight for o in self._objectives]).to(losses)).sum()

    def decayed(self) -> Iterable[nn.Parameter]:
        """Matrices of the blocks; not embeddings, norms, P, nor low-rank changes."""
        if not self._decay:
            return []
        body: Any = self.student.model.get_decoder()
        return [p for p in body.layers.parameters() if p.dim() > 1]
