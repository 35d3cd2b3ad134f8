"""Arguments of a pipeline: each of the type that the pipeline wants, or refused by name."""

import pytest

from pipelines.arguments import parse
from pipelines.compiled import Input, PipelineError

INPUTS = {
    i.name: i
    for i in [
        Input("config", "STRING", True),
        Input("trials", "NUMBER_INTEGER", False, 1),
        Input("margin", "NUMBER_DOUBLE", False, 0.0),
        Input("wait", "BOOLEAN", False, False),
        Input("sets", "LIST", False, []),
        Input("labels", "STRUCT", False, {}),
    ]
}


def test_each_argument_gets_its_type():
    given = [
        "config=a=b.yaml",
        "trials=3",
        "margin=1e-3",
        "wait=True",
        'sets=["a=1"]',
        'labels={"a": 1}',
    ]
    assert parse("p", INPUTS, given) == {
        "config": "a=b.yaml",
        "trials": 3,
        "margin": 0.001,
        "wait": True,
        "sets": ["a=1"],
        "labels": {"a": 1},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trials=many"], "trials must be a whole number, found 'many'"),
        (["trials=1.5"], "trials must be a whole number, found '1.5'"),
        (["margin=little"], "margin must be a number, found 'little'"),
        (["wait=yes"], "wait must be true or false, found 'yes'"),
        (["sets=a=1"], r"sets must be a list in JSON .*, found 'a=1'"),
        (['sets={"a": 1}'], "sets must be a list in JSON"),
        (["labels=[1]"], "labels must be an object in JSON"),
        (["confg=a"], "confg is no argument of the pipeline p, which takes config, trials, .*; did you mean 'config'"),
        (["config"], "an argument must be key=value, found 'config'"),
        (["config=a", "config=b"], "config is given twice"),
        (["trials=2"], "the pipeline p needs config=…, which is not given"),
        (["config="], "config must not be empty"),
    ],
)  # fmt: skip
def test_a_wrong_argument_says_what_is_wanted(given, message):
    with pytest.raises(PipelineError, match=message):
        parse("p", INPUTS, given)
