"""Ratings: the two heads against plain loops, what is refused, and scores and sets under the task."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from families import small_model
from safetensors.torch import save
from title_tokens import character_tokenizer

from layer_select.coalitions import Coalitions
from layer_select.decoder import Decoder
from layer_select.importance.fisher import Fisher
from layer_select.importance.measure import measure
from layer_select.task.config import RatingTask, SequenceData
from layer_select.task.rating import RatingHead, RatingObjective, table_metrics
from layer_select.task.run import open_task
from rayrun.config import ConfigError, validate
from rayrun.ray.worker import SingleWorker

TITLES = ["Go", "Chess", "围棋", "Kite", "Zoo", "龙舟", "Tea", "Sea"]
SIZES = {
    "calibration": 20,
    "validation": 10,
    "test": 20,
    "micro_batch": 7,
    "max_history": 4,
    "max_tokens": 90,
}
SHOWN = {"prompt": {"item": "{title} {rating}\n"}}
WIDTH = 32


@pytest.fixture(scope="module")
def decoder():
    return Decoder(small_model("llama").double())


def head_of(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = {"regression": 1, "classes": 5}[kind]
    given = torch.randn(rows, WIDTH + 1, generator=generator, dtype=torch.float64)
    return RatingHead(given[:, 1:] * 0.4, given[:, 0])


@pytest.fixture(scope="module")
def rated_log(tmp_path_factory) -> SequenceData:
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", int(item), time, TITLES[item], int(rng.integers(1, 6)))
        for user in range(24)
        for time, item in enumerate(rng.integers(0, len(TITLES), rng.integers(3, 9)))
    ]
    names = ("user", "item", "time", "title", "rating")
    columns = {n: list(v) for n, v in zip(names, zip(*rows, strict=True), strict=True)}
    path = tmp_path_factory.mktemp("rated") / "log.parquet"
    pq.write_table(pa.table(columns), path)
    roles = {"user": "user", "item": "item", "title": "title", "rating": "rating"}
    source = {"path": str(path), "columns": {**roles, "time": {"column": "time"}}}
    return validate(SequenceData, {"source": source}, where="test")


@pytest.fixture(scope="module")
def words():
    return character_tokenizer([*TITLES, "Rating of : \n", "12345"])


@pytest.fixture
def opened(rated_log, words):
    def make(kind="regression", head=None, data=rated_log, **changes):
        task = RatingTask.model_validate({**SIZES, "head": kind, **changes})
        content = (head or head_of(kind)).written()
        return open_task(data, task, tokenizer=words, vocab_size=97, rating_head=content)

    return make


def normed_of(decoder, batch):
    with torch.no_grad():
        return decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask)))


def test_the_prompt_shows_earlier_ratings_and_asks_for_the_next(opened):
    for changes in ({}, SHOWN):
        task = opened(**changes)
        titles = task.sequences.titles
        for batch in task.batches("test"):
            for row, number in enumerate(batch.sample.tolist()):
                sample = task.samples["test"][number]
                ratings = task.sequences.ratings[sample.user]
                assert batch.rating[row] == ratings[-1] == sample.label
                begin = max(0, sample.position - 4)
                assert sample.ratings.tolist() == ratings[begin : sample.position].tolist()
                seen = zip(sample.history, sample.ratings, strict=True)
                lines = [f"{titles[i]} {r}\n" if changes else f"{titles[i]}\n" for i, r in seen]
                text = "".join(lines) + f"Rating of {titles[sample.item]}: "
                ids = batch.ids[row][batch.mask[row] == 1].tolist()
                plain = task.prompts._tokenizer(text, add_special_tokens=False)["input_ids"]
                assert ids[1:] == plain


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_losses_and_metrics_are_those_of_plain_loops(decoder, opened, kind):
    task, head = opened(kind), head_of(kind).requires_grad_(False)
    objective = task.objective(decoder)
    found, squares = {}, []
    for batch in task.batches("test"):
        normed = normed_of(decoder, batch)
        loss, metrics = objective.loss(normed, batch), objective.metrics(normed, batch)
        for row, number in enumerate(batch.sample.tolist()):
            stars = task.samples["test"][number].label
            hidden = normed[row, -1]
            scores = [float(w @ hidden + b) for w, b in zip(head.weight, head.bias, strict=True)]
            if kind == "regression":
                guess = 3 + scores[0]
                expected = (stars - guess) ** 2 / 2
                right = round(min(max(guess, 1), 5)) == stars
            else:
                total = sum(math.exp(score) for score in scores)
                guess = sum((k + 1) * math.exp(score) / total for k, score in enumerate(scores))
                expected = math.log(total) - scores[stars - 1]
                right = max(range(5), key=scores.__getitem__) == stars - 1
            error = stars - min(max(guess, 1), 5)
            squares.append(error**2)
            assert float(loss[row]) == pytest.approx(expected, rel=1e-9)
            assert {n: float(v[row]) for n, v in metrics.items()} == pytest.approx(
                {"squared_error": error**2, "absolute_error": abs(error), "accuracy": float(right)}
            )
            for name, value in metrics.items():
                found.setdefault(name, []).append(float(value[row]))
    assert len(squares) == 20
    table = table_metrics({name: float(np.mean(values)) for name, values in found.items()})
    assert table["rmse"] == pytest.approx(math.sqrt(np.mean(squares)))
    assert set(table) == {"rmse", "mae", "accuracy"}


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_drawn_ratings_follow_the_models_own_distribution(decoder, opened, kind):
    task = opened(kind)
    objective = task.objective(decoder)
    batch = task.batches("test")[1]
    normed = normed_of(decoder, batch)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [objective.drawn(normed, batch, generator).rating for _ in range(2000)]
    ).double()
    outputs = task.rating_head(WIDTH, "here").outputs(normed[:, -1])
    if kind == "regression":
        mean, variance = outputs[:, 0], torch.ones(batch.size)
    else:
        chances, stars = outputs.softmax(-1), torch.arange(1.0, 6.0, dtype=torch.float64)
        mean = chances @ stars
        variance = chances @ stars.square() - mean.square()
    assert ((draws.mean(0) - mean).abs() <= 5 * (variance / 2000).sqrt()).all()
    assert ((draws.var(0) - variance).abs() <= 0.25).all()
    # A drawn rating has a loss, and a gradient that a clipped prediction keeps too.
    far = normed.mul(50).requires_grad_()
    loss = objective.loss(far, replace(batch, rating=draws[0]))
    assert torch.autograd.grad(loss.sum(), far)[0][:, -1].abs().sum(-1).gt(0).all()


def test_shuffled_targets_are_other_stars_for_the_same_items(opened):
    task = opened()
    right, dealt = task.samples_of("test"), task.samples_of("test", shuffled_targets=True)
    assert [s.item for s in right] == [s.item for s in dealt]
    assert sorted(s.label for s in right) == sorted(s.label for s in dealt)
    assert [s.label for s in right] != [s.label for s in dealt]


def test_the_digest_is_of_the_head_and_of_the_ratings_shown(opened):
    digests = [
        task.digest
        for task in (opened(), opened(), opened(head=head_of("regression", 1)), opened(**SHOWN))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_layers_are_scored_and_left_out_under_the_task(decoder, opened, kind, tmp_path):
    task = opened(kind)
    objective, batches = task.objective(decoder), task.batches("calibration")
    worker = SingleWorker(tmp_path)
    found = Coalitions(decoder, objective, batches, worker)
    full = range(decoder.num_layers)
    expected = torch.cat([objective.loss(normed_of(decoder, b), b) for b in batches])
    assert found.loss(full) == pytest.approx(float(expected.mean()))
    assert found.loss([0, 1, 2]) != pytest.approx(found.loss(full), rel=1e-3)
    assert set(found.metrics(full)) == {"squared_error", "absolute_error", "accuracy"}
    measured = measure(
        (Fisher(), Fisher(monte_carlo=True)),
        decoder=decoder,
        objective=objective,
        batches=batches,
        worker=worker,
        chunk=1,
        journal=None,
        coalitions=lambda: found,
    )
    assert measured.loss == pytest.approx(float(expected.mean()))
    for one in measured.found.values():
        assert (torch.as_tensor(one.scores) > 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"needs rating_head.safetensors, and .* has none: an untrained head measures nothing",
        ),
        (b"x", r"of the model is damaged .* make it again with `layer-select fit-head`"),
        (
            head_of("classes").written(),
            r"'weight' \[1, 32\] and 'bias' \[1\] for task.head regression",
        ),
        (
            save({"weight": torch.full((1, WIDTH), math.nan), "bias": torch.zeros(1)}),
            "holds a number that is not finite",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_refused(rated_log, words, decoder, content, message):
    task = open_task(
        rated_log, RatingTask(**SIZES), tokenizer=words, vocab_size=97, rating_head=content
    )
    with pytest.raises(ConfigError, match=message):
        task.objective(decoder)


def test_a_source_without_ratings_is_refused(titled_data, opened):
    message = r"task.type rating needs ratings, and .* has none; name the column"
    with pytest.raises(ConfigError, match=message):
        opened(data=titled_data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "head", **SHOWN}, r"prompt.item may hold \{rating\} with task.type rating alone"),
        ({"prompt": {"item": "{title}{rating}{rating}"}}, r"prompt.item may hold \{rating\} once"),
        ({"question": "How many?"}, r"question must hold \{title\} exactly once"),
        ({"ridge": ()}, "ridge must hold at least one weight, found none"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(changes, message):
    from layer_select.task.config import HeadTask

    kind = HeadTask if changes.get("type") == "head" else RatingTask
    with pytest.raises(ValueError, match=message):
        kind.model_validate({**SIZES, **changes})


def test_ties_are_no_right_answer():
    head = RatingHead(torch.zeros(5, 2), torch.zeros(5))
    objective = RatingObjective(head)
    hidden, rating = torch.zeros(2, 1, 2), torch.tensor([1.0, 3.0])
    from layer_select.task.batch import TaskBatch

    whole = torch.ones(2, 1, dtype=torch.int64)
    batch = TaskBatch(whole, whole, torch.arange(2), torch.arange(2), rating=rating)
    found = objective.metrics(hidden, batch)
    assert found["accuracy"].tolist() == [0.0, 0.0]
    assert found["squared_error"].tolist() == pytest.approx([4.0, 0.0])
