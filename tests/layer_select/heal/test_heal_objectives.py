"""Objectives against plain loops in float64, and what the section refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from layer_select.heal.config import Heal, Narrow
from layer_select.heal.objectives import TaskLoss, Tokens
from layer_select.heal.objectives.base import Lesson
from layer_select.heal.objectives.hidden import mapping
from layer_select.heal.objectives.kl import divergence
from layer_select.heal.recommender import Recommender
from layer_select.heal.signals import top
from rayrun.config import ConfigError, validate


def logits_of(seed, rows=5, classes=9):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def divergence_reference(student, teacher, top_k, temperature):
    """T² KL over the teacher's best classes and one for all others, by loops."""
    found = []
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = (
            [math.exp(z / temperature) / sum(math.exp(y / temperature) for y in row) for z in row]
            for row in (own, other)
        )
        best = sorted(range(len(p)), key=lambda c: -p[c])[:top_k]
        left = [c for c in range(len(p)) if c not in best]
        pairs = [(p[c], q[c]) for c in best]
        if left:
            pairs.append((sum(p[c] for c in left), sum(q[c] for c in left)))
        found.append(temperature**2 * sum(a * math.log(a / b) for a, b in pairs))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [1, 4, 8, 9, 50])
def test_the_divergence_is_that_of_plain_loops(top_k, temperature):
    student, teacher = logits_of(0), logits_of(1)
    said = top(teacher, top_k, temperature)
    expected = divergence_reference(student, teacher, min(top_k, 9), temperature)
    found = divergence(student, said, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_with_all_classes_it_is_the_full_divergence_and_its_gradient():
    student, teacher = logits_of(2).requires_grad_(), logits_of(3)
    temperature = 1.7
    full = kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).softmax(-1),
        reduction="sum",
    )
    (expected,) = torch.autograd.grad(full * temperature**2, student)
    for top_k in (9, 100):
        found = divergence(student, top(teacher, top_k, temperature), temperature).sum()
        assert found.item() == pytest.approx(full.item() * temperature**2, rel=1e-12)
        (gradient,) = torch.autograd.grad(found, student)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    fewer = [
        float(divergence(student.detach(), top(teacher, k, 1.0), 1.0).sum()) for k in (1, 3, 6, 9)
    ]
    assert fewer == sorted(fewer)  # classes that are told apart only add


def test_rest_without_mass_gives_no_nan():
    teacher = torch.tensor([[400.0, 0.0, -400.0]], dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    found = divergence(student, top(teacher, 1, 1.0), 1.0).sum()
    found.backward()
    assert found.item() == pytest.approx(math.log(3), rel=1e-12)
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_layers_stand_for_those_removed_after_them():
    assert mapping((0, 3, 11), 12) == {0: 2, 1: 10, 2: 11}
    assert mapping((0, 1, 2), 3) == {0: 0, 1: 1, 2: 2}
    assert mapping((1, 2), 5) == {0: 1, 1: 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": []}, "objectives: at least one with a weight above 0 is required"),
        ({"objectives": [{"type": "kl", "weight": 0}]}, "at least one with a weight above 0"),
        ({"objectives": [{"type": "kl"}, {"type": "kl"}]}, "each once, found twice: kl"),
        ({"stages": [3, 5]}, r"stages must fall from one to the next, found \[3, 5\]"),
        (
            {"stages": [3], "student": {"type": "scratch"}},
            "student must be of type compact, found scratch",
        ),
        ({"student": {"type": "narrow"}}, "hidden compares states of one width"),
        (
            {"student": {"type": "narrow", "width": 30, "heads": 4}},
            "width must be an even multiple of heads, found 30 and 4",
        ),
        (
            {"student": {"type": "narrow", "heads": 4, "key_value_heads": 3}},
            "heads must be a multiple of key_value_heads, found 4 and 3",
        ),
    ],
)
def test_sections_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(Heal, changes, where="test")


def test_the_classical_student_has_its_preset():
    found = Narrow()
    assert (found.width, found.feed_forward, found.heads) == (512, 1024, 8)


def test_cross_entropy_of_the_task_counts_every_end_of_a_title(tiny_healing):
    """The student's own losses, by loops over the texts of a row, each alone."""
    healing, rows = tiny_healing
    batch = rows[slice(0, 3)]
    counts = healing.counts(batch)
    with torch.no_grad():
        found = dict(zip(healing.names, healing(batch, counts), strict=True))
    student = healing.student
    items, tokens = [], []
    for row in range(3):
        for text in range(1, int(batch.rows.text[row].max()) + 1):
            there = batch.rows.text[row] == text
            ids, targets = batch.rows.ids[row][there], batch.rows.items[row][there]
            with torch.no_grad():
                body = student.model.get_decoder()
                hidden = body(input_ids=ids[None], use_cache=False).last_hidden_state[0]
                scores, logits = hidden @ student.vectors().T, student.model.lm_head(hidden)
            for at, target in enumerate(targets.tolist()):
                if target >= 0:
                    items.append(cross_entropy(scores[at], torch.tensor(target)))
                if at + 1 < len(ids):
                    tokens.append(cross_entropy(logits[at], ids[at + 1]))
    assert counts[healing.names.index("task")] == len(items)
    torch.testing.assert_close(found["task"], torch.stack(items).mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["tokens"], torch.stack(tokens).mean(), rtol=1e-5, atol=1e-5)


def test_other_tasks_have_their_own_targets(tiny_healing):
    """Titles are their tokens; answers are told apart by the two logits after the question."""
    healing, rows = tiny_healing
    batch = rows[slice(0, 2)].rows
    asked = batch.answers.clone()
    asked[0, 4], asked[1, 7] = 1, 0
    batch = replace(batch, answers=asked)
    student = Recommender(healing.student.decoder, torch.eye(32), [[5]], answers=[7, 9])
    with torch.no_grad():
        seen = student.see(batch)
        lesson = Lesson(seen, {}, {}, "likelihood")
        found = TaskLoss().loss(lesson)
        torch.testing.assert_close(found, Tokens().loss(lesson), rtol=0, atol=0)
        assert int(TaskLoss().targets(batch, "yes_no").sum()) == 2
        logits = student.model.lm_head(seen.normed)
        pairs = [(logits[0, 4][[7, 9]], 1), (logits[1, 7][[7, 9]], 0)]
        expected = sum(cross_entropy(pair, torch.tensor(right)) for pair, right in pairs)
        answered = TaskLoss().loss(replace(lesson, task="yes_no"))
    torch.testing.assert_close(answered, torch.as_tensor(expected), rtol=1e-5, atol=1e-5)
