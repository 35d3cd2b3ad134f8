"""The space of a search: what it may name, and what is refused before any trial."""

from pathlib import Path

import pytest

from infnet.config import InfnetConfig
from infnet.tune.points import M_TASK, N_S, K, M, plan_of, sets, with_values
from rayrun.config import ConfigError, load

SMOKE = Path(__file__).parents[3] / "configs" / "infnet" / "smoke.yaml"


def config(*given: str) -> InfnetConfig:
    return load(InfnetConfig, SMOKE, given)


def space(text: str) -> str:
    return f"tune.space={{{text}}}"


def test_the_counts_of_proxies_that_there_are_are_searched():
    assert set(plan_of(config()).space) == {M, K, N_S}
    pooled = config("model.task_proxies={type: pooled, count: 2}")
    assert set(plan_of(pooled).space) == {M, K, N_S, M_TASK}
    features = {n: f for n, f in config().features.items() if n != "clicked"}
    without = config().model_copy(update={"features": features})
    assert set(plan_of(without).space) == {M, N_S}


ONE = "{type: choice, values: [1, 2]}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [space(f"model.num_categorical_proxis: {ONE}")],
            r"model\.num_categorical_proxis: there is no such key; did you mean "
            "'num_categorical_proxies'",
        ),
        ([space(f"modle.token_dim: {ONE}")], r"modle\.token_dim is no key .*did you mean 'model'"),
        ([space(f"features.user.dim: {ONE}")], "must name paths below model or train, found feat"),
        ([space(f"model: {ONE}")], "must name paths below model or train, found model"),
        ([space(f"train.seed: {ONE}")], "train.seed is drawn by tune.seeds"),
        ([space(f"train.strategy.zero_stage: {ONE}")], "changes nothing in trials of one worker"),
        (
            [space("model.token_dim: {type: choice, values: [8, 0]}")],
            "the configuration with model.token_dim=0 is not a valid .*\n.*token_dim must be",
        ),
        (
            [space("train.epochs: {type: int, low: 0, high: 3}")],
            "train.epochs: Input should be greater than 0; found 0",
        ),
        (
            [
                space(
                    "model.token_dim: {type: choice, values: [2, 4]}, "
                    "model.num_heads: {type: choice, values: [1, 4]}"
                ),
                "tune.searcher={type: grid}",
            ],
            r"token_dim \(2\) must be a multiple of num_heads \(4\)",
        ),
        (
            [space("train.optimizer.lr: {type: float, low: 0.1, high: 1}"),
             "tune.searcher={type: grid}"],
            "tune: searcher grid needs values that can be listed, found train.optimizer.lr",
        ),
        (["model={type: floor}"], "proxies needs model.type infnet, found floor"),
        (
            ["tune.objectives=[{type: metric, task: clik}]"],
            "task must be one of click, like, found 'clik'; did you mean 'click'",
        ),
        (["tune.objectives=[{type: metric, metric: rmse}]"], "metric must be one of .*'rmse'"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(config(*given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tune.space={}", "space must name at least one path"),
        ("tune.seeds=[1, 1]", r"seeds must be at least one, each once, found \[1, 1\]"),
        ("tune.objectives=[]", "objectives must be at least one, each once"),
        ("tune.objectives=[{type: latency}, {type: latency}]", "objectives must be at least one"),
    ],
)
def test_an_impossible_section_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        config(given)


def test_a_proxy_of_histories_without_histories_is_refused():
    features = {n: f for n, f in config().features.items() if n != "clicked"}
    without = config(space(f"{K}: {ONE}")).model_copy(update={"features": features})
    with pytest.raises(ConfigError, match="changes nothing without a feature of type sequence"):
        plan_of(without)


def test_a_point_is_what_set_makes_of_it():
    point = {"model.proxy_hidden": [4, 2], "train.optimizer.lr": 1e-5, M: 3}
    assert with_values(config(), point) == config(*sets(point))
    assert with_values(config(), point).train.optimizer.lr == 1e-5


def test_a_search_is_in_no_digest_but_its_own():
    other = config("tune.seeds=[7]")
    assert other.digest() == config().digest()
    assert other.tune.digest() != config().tune.digest()
