"""The digest of a configuration: what enters and what does not."""

import pytest

from rayrun.config import (
    Config,
    apply_override,
    digest_of,
    validate,
)
from tests.rayrun.written_run import Run, run

BASE = {
    "name": "a",
    "net": {"type": "wide", "weights": "x", "more": ["p"], "other": "q"},
    "source": {"path": "here", "columns": {"u": "user", "i": "item"}},
    "compute": {"type": "local", "workers": 1},
    "inputs": {"data": "d"},
}


@pytest.mark.parametrize(
    "override",
    [
        "name=b",
        "compute.workers=2",
        "compute={type: attached}",
        "inputs.data=elsewhere",
        "net.weights=elsewhere",
        "net.more=[a, b]",
        "net.other=null",
        "source.path=s3://there/log",
        "lr=0.001",
        "source.columns={i: item, u: user}",
    ],
)
def test_names_places_and_order_do_not_enter_the_digest(override):
    before = validate(Run, BASE, where="test")
    after = validate(Run, apply_override(BASE, override), where="test")
    assert before.digest() == after.digest()


@pytest.mark.parametrize(
    "override",
    [
        "net.type=mlp",
        "rivals.a={type: mlp}",
        "source=log",
        "source.columns.u=uid",
        "lr=0.002",
        "steps=1",
        "at=[6]",
        "at=[5, 5]",
    ],
)
def test_every_other_field_enters_the_digest(override):
    raw = BASE if override != "net.type=mlp" else {**BASE, "net": {"type": "wide"}}
    before = validate(Run, raw, where="test")
    after = validate(Run, apply_override(raw, override), where="test")
    assert before.digest() != after.digest()


def test_defaults_written_out_give_the_same_digest():
    assert run().digest() == validate(Run, run().to_dict(), where="test").digest()


def test_a_digest_of_sections_changes_with_them_alone():
    plain, wider, longer = (
        validate(Run, apply_override(BASE, override), where="test")
        for override in ("name=a", "lr=0.002", "steps=1")
    )
    assert wider.digest(["steps", "source"]) == plain.digest(["source", "steps"])
    assert longer.digest(["steps", "source"]) != plain.digest(["steps", "source"])
    assert plain.digest(["net.type"]) != plain.digest(["net"])


@pytest.mark.parametrize("section", ["compute", "nothing", "net.nothing", "lr.deeper"])
def test_a_section_that_is_not_digested_is_refused(section):
    with pytest.raises(
        ValueError, match=f"sections must name digested keys of Run, found '{section}'"
    ):
        run().digest([section])


def test_a_digest_is_the_same_in_every_process():
    assert digest_of({"b": [1, 0.5, "é"], "a": None}) == (
        "sha256:f0272939140c5740d58cdf952a5f710ec35c2875c9af822cf3472f6616ba78af"
    )


def test_a_name_deeper_inside_does_enter():
    class Named(Config):
        name: str

    class Outer(Config):
        name: str
        inner: Named

    assert (
        Outer(name="a", inner=Named(name="x")).digest()
        != Outer(name="a", inner=Named(name="y")).digest()
    )
