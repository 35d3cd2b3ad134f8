"""The first rating head: against scikit-learn, on a small decoder, and in the way of the verbs."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from layer_select.config import LayerSelectConfig
from layer_select.keys import to_score
from layer_select.opened import open_inputs
from layer_select.pretrain import build
from layer_select.sources import load, open_model
from layer_select.task import fit_head
from layer_select.task.rating import RATING_HEAD, RatingHead
from layer_select.task.rating_baselines import PRIOR, rating_baselines
from layer_select.task.rating_fit import Events, fit
from rayrun.config import ConfigError, validate
from rayrun.ray.worker import SingleWorker

SIZES = {"calibration": 16, "validation": 60, "test": 120, "fit_samples": 400, "max_tokens": 110}


def events(count, width, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, width)) * rng.uniform(0.1, 9, width) + rng.normal(size=width)
    hidden[:, 0] = 2.5  # a dead number must not divide by zero
    rating = np.clip(np.round(3.2 + hidden[:, 1] / 4 + rng.normal(size=count)), 1, 5)
    return Events(torch.from_numpy(hidden).float(), torch.from_numpy(rating).float())


@pytest.mark.parametrize(("count", "width"), [(80, 6), (20, 50)])
@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_the_fit_is_that_of_an_installed_peer(count, width, kind):
    given, ridge = events(count, width), 0.05
    hidden, rating = given.hidden.double().numpy(), given.rating.numpy()
    spread = hidden.std(0)
    z = (hidden - hidden.mean(0)) / np.where(spread > 0, spread, 1)
    fitted = fit(kind, (ridge, 9.0), given, None)
    assert fitted.ridge == ridge
    outputs = fitted.head.outputs(given.hidden.double()).detach().numpy()
    if kind == "regression":
        theirs = Ridge(alpha=ridge * count, solver="cholesky").fit(z, rating)
        np.testing.assert_allclose(outputs[:, 0], theirs.predict(z), rtol=0, atol=1e-5)
    else:
        theirs = LogisticRegression(C=1 / (ridge * count), tol=1e-9, max_iter=5000).fit(z, rating)
        chances = torch.from_numpy(outputs).softmax(-1).numpy()
        own = chances[:, theirs.classes_.astype(int) - 1]
        np.testing.assert_allclose(own, theirs.predict_proba(z), rtol=0, atol=1e-3)


def test_the_penalty_is_the_one_of_least_validation_loss():
    training, validation = events(60, 30), events(400, 30, seed=1)
    # other data: the same map from hidden states to ratings does not hold, so more is better
    fitted = fit("regression", (1e-4, 1e-1, 1e3), training, validation)
    assert fitted.ridge == min(fitted.losses, key=fitted.losses.__getitem__)
    alone = fit("regression", (fitted.ridge,), training, None)
    assert torch.equal(alone.head.weight, fitted.head.weight)
    heavy = fit("classes", (1e9,), training, None).head
    shares = np.bincount(training.rating.int(), minlength=6)[1:] / 60
    chances = heavy.outputs(validation.hidden).softmax(-1)
    np.testing.assert_allclose(chances.detach(), np.tile(shares, (400, 1)), atol=1e-3)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (torch.zeros(1, 3), "needs at least 2 training events, found 1; raise task.fit_samples"),
        (torch.full((4, 3), torch.nan), "the last hidden states must be finite, and some are not"),
    ],
)
def test_what_cannot_be_fitted_is_refused(hidden, message):
    with pytest.raises(ConfigError, match=message):
        fit("regression", (1.0,), Events(hidden, torch.ones(len(hidden))), None)


@pytest.fixture(scope="module")
def rated_config(tiny_config, tiny_model) -> LayerSelectConfig:
    raw = tiny_config.to_dict()
    raw["data"]["source"] |= {"ratings": True}
    raw["task"] = {"type": "rating", "prompt": {"item": "{title} {rating}\n"}, **SIZES}
    raw["pretrain"] = None
    raw["inputs"] = {"model": str(tiny_model)}
    return validate(LayerSelectConfig, raw, where="test")


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_a_head_on_a_small_decoder_beats_the_mean_and_opens_the_task(rated_config, kind, tmp_path):
    task = rated_config.task.model_copy(update={"head": kind})
    config = rated_config.model_copy(update={"task": task})
    _, opened = fit_head._opened(config)
    argument = {
        "config": config.to_dict(),
        "task": opened.digest,
        "infnet_data": "",
        "head": str(tmp_path / RATING_HEAD),
    }
    found = fit_head.on_worker(SingleWorker(tmp_path / "state"), argument)
    assert found["events"] == {"calibration": 400, "validation": 60, "test": 120}
    means = rating_baselines(opened.sequences, opened.samples["test"])
    assert found["metrics"]["rmse"] < np.sqrt(means["global_mean"]["squared_error"].mean())
    assert json.loads(json.dumps(found)) == found

    inputs = config.inputs.model_copy(update={"rating_head": str(tmp_path)})
    config = config.model_copy(update={"inputs": inputs})
    both = open_inputs(config)
    assert both.checkpoint.file(RATING_HEAD) == (tmp_path / RATING_HEAD).read_bytes()
    assert both.checkpoint.digest == open_model(None, config.inputs.model).digest
    decoder = load(both.checkpoint, dtype=torch.float32, device="cpu")
    squares = []
    for batch in both.task.batches("test"):
        with torch.no_grad():
            normed = decoder.finish(decoder.through(decoder.start(batch.ids, batch.mask)))
        squares.append(both.task.objective(decoder).metrics(normed, batch)["squared_error"])
    rmse = float(torch.cat(squares).mean().sqrt())
    assert rmse == pytest.approx(found["metrics"]["rmse"], rel=1e-4)


def test_states_are_read_in_the_order_of_the_samples_for_any_number_at_once(rated_config, tmp_path):
    checkpoint, task = fit_head._opened(rated_config)
    decoder = load(checkpoint, dtype=torch.float32, device="cpu")
    batches = task.batches("validation")
    few, many = (
        fit_head.read_events(SingleWorker(tmp_path), decoder, batches, at_once)
        for at_once in (1, 9)
    )
    assert torch.equal(few.hidden, many.hidden)
    assert few.rating.tolist() == [sample.label for sample in task.samples["validation"]]


def test_without_a_head_the_task_is_refused_and_with_another_the_key_is_another(
    rated_config, tmp_path
):
    with pytest.raises(ConfigError, match=r"and .* has none: an untrained head measures nothing"):
        open_inputs(rated_config)
    width = open_model(None, rated_config.inputs.model).config.hidden_size
    keys = [to_score(rated_config)]
    for value in (0.0, 1.0):
        head = RatingHead(torch.full((1, width), value), torch.zeros(1))
        (tmp_path / RATING_HEAD).write_bytes(head.written())
        inputs = rated_config.inputs.model_copy(update={"rating_head": str(tmp_path)})
        keys.append(to_score(rated_config.model_copy(update={"inputs": inputs})))
    assert len({json.dumps(key) for key in keys}) == 3
    missing = rated_config.inputs.model_copy(update={"rating_head": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"but there is no rating_head.safetensors in it; make"):
        open_inputs(rated_config.model_copy(update={"inputs": missing}))


def test_baselines_are_means_of_training_events_alone(rated_config):
    _, task = fit_head._opened(rated_config)
    sequences, samples = task.sequences, task.samples["test"]
    found = rating_baselines(sequences, samples)
    seen = [
        (user, int(item), int(stars))
        for user, (items, given) in enumerate(
            zip(sequences.histories, sequences.ratings, strict=True)
        )
        for item, stars in list(zip(items, given, strict=True))[:-2]
    ]
    mean = sum(stars for *_, stars in seen) / len(seen)
    for place, sample in enumerate(samples[:25]):
        for name, column, own in (("item_mean", 1, sample.item), ("user_mean", 0, sample.user)):
            rated = [event[2] for event in seen if event[column] == own]
            guess = (sum(rated) + PRIOR * mean) / (len(rated) + PRIOR)
            error = found[name]["squared_error"][place]
            assert error == pytest.approx((sample.label - guess) ** 2)
        assert found["global_mean"]["absolute_error"][place] == pytest.approx(
            abs(sample.label - mean)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"type": "head"}}, r"but task.type is 'head'; set task.type: rating"),
        (
            {"task": {"type": "rating", "test": 0, "validation": 0}},
            r"fit-head needs held-out samples to tell what the head is worth; raise task.test",
        ),
    ],
)
def test_a_configuration_that_cannot_be_fitted_is_refused(tiny_config, tmp_path, change, message):
    config = validate(LayerSelectConfig, {**tiny_config.to_dict(), **change}, where="test")
    with pytest.raises(ConfigError, match=message):
        fit_head.fit_head(config, str(tmp_path / "head"))


def test_a_small_decoder_is_not_pretrained_on_ratings(rated_config, tiny_config):
    config = rated_config.model_copy(update={"pretrain": tiny_config.pretrain})
    with pytest.raises(
        ConfigError, match=r"learns histories without ratings, but task.prompt.item"
    ):
        build.questions(config)


def test_data_that_differ_between_machines_are_refused(rated_config, tmp_path):
    argument = {
        "config": rated_config.to_dict(),
        "task": "sha256:other",
        "infnet_data": "",
        "head": str(tmp_path / RATING_HEAD),
    }
    with pytest.raises(ConfigError, match="the task differs between the machines of the run"):
        fit_head.on_worker(SingleWorker(tmp_path), argument)


def test_the_plan_says_what_is_fitted(rated_config, tmp_path):
    lines = fit_head.plan(rated_config, str(tmp_path)).splitlines()
    assert (
        lines[-1] == "events: 400 to fit on, 60 to choose the penalty, 120 of test for the result"
    )
