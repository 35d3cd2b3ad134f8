"""Validation and overrides: strict, and every complaint names key and value."""

import pytest

from rayrun.config import (
    ConfigError,
    apply_override,
)
from tests.rayrun.written_run import Mlp, run, run_of

# --- Validation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": True}, "steps: Input should be a valid integer; found True"),
        ({"steps": "3"}, "steps: Input should be a valid integer; found '3'"),
        ({"steps": 1.5}, "steps: Input should be a valid integer"),
        ({"name": 1}, "name: Input should be a valid string; found 1"),
        ({"lr": True}, "lr: Input should be a valid number; found True"),
        ({"at": 5}, "at: Input should be a valid array; found 5"),
        ({"at": {"0": 5}}, "at: Input should be a valid array; found a mapping"),
        ({"steps": 0}, r"\n  steps must be at least 1, found 0"),
        ({"stpes": 1}, "stpes: there is no such key; did you mean 'steps'?"),
        ({"zzz": 1}, "zzz: there is no such key; known keys: name, net, rivals"),
    ],
)
def test_validation_is_strict_and_names_key_and_value(change, message):
    with pytest.raises(ConfigError, match=message):
        run(**change)


def test_lists_are_taken_for_tuples_and_whole_numbers_for_floats():
    found = run(at=[1, 2], lr=1)
    assert found.at == (1, 2)
    assert found.lr == 1.0


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        run().name = "b"  # type: ignore[misc]


def test_several_errors_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        run(net={"type": "mlp", "widht": 3}, lr="fast", steps=True)
    lines = str(caught.value).split("\n")
    assert lines[0] == "test is not a valid Run:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {"net.widht", "lr", "steps"}


def test_the_tag_of_a_union_is_no_part_of_the_key():
    with pytest.raises(
        ConfigError, match=r"^  rivals\.mlp\.width: .*found 'x'$|rivals.mlp.width: Input"
    ):
        run(rivals={"mlp": {"type": "mlp", "width": "x"}})
    with pytest.raises(ConfigError, match=r"\n  net\.width: Input"):
        run(net={"type": "mlp", "width": "x"})


def test_an_unknown_type_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        ConfigError, match=r"net: .*'mpl'.*'mlp', 'wide', 'deep'; did you mean 'mlp'?"
    ):
        run(net={"type": "mpl"})


def test_a_missing_type_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match="net: a key 'type' is required, one of 'mlp', 'wide', 'deep'"
    ):
        run(net={"width": 3})
    with pytest.raises(
        ConfigError, match="compute: a key 'type' is required, one of 'local', 'attached'"
    ):
        run(compute={"workers": 2})


def test_a_union_without_type_tells_the_errors_of_the_nearest_member():
    with pytest.raises(ConfigError) as caught:
        run(source={"path": "x", "colums": {}})
    assert str(caught.value).split("\n")[1:] == [
        "  source.colums: there is no such key; did you mean 'columns'?"
    ]
    with pytest.raises(ConfigError) as caught:
        run(rivals={"r": {"type": "deep", "part": {"path": "x", "colums": {}}}})
    assert str(caught.value).split("\n")[1:] == [
        "  rivals.r.part.colums: there is no such key; did you mean 'columns'?"
    ]
    with pytest.raises(ConfigError, match=r"source: .*valid string or .*object; found 3"):
        run(source=3)


# --- Overrides -------------------------------------------------------------------------------


def test_overrides_are_applied_in_order(tmp_path):
    found = run_of("name: a", "net.width=4", "net.type=mlp", "at=[1, 2]", "at.1=7", folder=tmp_path)
    assert found.net == Mlp(width=4)
    assert found.at == (1, 7)


def test_an_override_does_not_touch_the_raw_data_it_is_given():
    raw = {"a": {"b": 1}}
    assert apply_override(raw, "a.b=2") == {"a": {"b": 2}}
    assert raw == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("x=1e-3", 1e-3),
        ("x=no", "no"),
        ("x=", None),
        ("x=a=b", "a=b"),
        ("x={y: 1}", {"y": 1}),
        (" x =1", 1),
    ],
)
def test_a_value_is_read_as_yaml(override, value):
    assert apply_override({}, override) == {"x": value}


def test_a_fragment_is_merged_into_a_mapping_and_replaces_all_else(tmp_path):
    fragment = tmp_path / "fragment.yaml"
    fragment.write_text("{b: 2, c: {e: 5}}")
    raw = {"a": {"b": 1, "c": {"d": 4}}, "l": [{"b": 1, "z": 0}], "s": 1}
    assert apply_override(raw, f"a=@{fragment}")["a"] == {"b": 2, "c": {"d": 4, "e": 5}}
    assert apply_override(raw, f"l.0=@{fragment}")["l"] == [{"b": 2, "z": 0, "c": {"e": 5}}]
    assert apply_override(raw, f"s=@{fragment}")["s"] == {"b": 2, "c": {"e": 5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x", "--set needs KEY=VALUE or KEY=@FILE, found 'x'"),
        ("=1", "--set needs KEY=VALUE"),
        ("a..b=1", "--set needs KEY=VALUE"),
        ("s.x=1", "--set s.x: s holds the value 'text', which has no keys inside"),
        (
            "l.1=2",
            r"--set l.1: a list of 1 items stands there; name one by its position 0..0, found '1'",
        ),
        ("l.x=2", "found 'x'"),
        ("l.0.b=2", "--set l.0.b: l.0 holds the value 7"),
        ("e.0=2", "--set e.0: the list there is empty; set the whole list instead"),
        ("x=[1", "--set x, line 1.* is not valid YAML"),
        ("x=@/no/such.yaml", "--set x: there is no file /no/such.yaml"),
    ],
)
def test_an_impossible_override_says_why(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_override({"s": "text", "l": [7], "e": []}, override)


def test_a_path_goes_through_what_is_null():
    assert apply_override({"a": None, "l": [None]}, "a.b=1")["a"] == {"b": 1}
    assert apply_override({"a": None, "l": [None]}, "l.0.b=1")["l"] == [{"b": 1}]
