from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from rayrun.config import (
    Config,
    ConfigError,
    Place,
    PlacePath,
    apply_override,
    digest_of,
    load,
    parse_yaml,
    validate,
)
from rayrun.ray.compute import Compute


class Mlp(Config):
    type: Literal["mlp"] = "mlp"
    width: int = 8
    dropout: float = 0.0


class Wide(Config):
    type: Literal["wide"] = "wide"
    weights: Annotated[str, Place] = ""
    more: tuple[PlacePath, ...] = ()
    other: Annotated[str, Place] | None = None


class Files(Config):
    path: Annotated[str, Place]
    columns: dict[str, str] = {}


class Deep(Config):
    type: Literal["deep"] = "deep"
    part: str | Files = ""


Net = Annotated[Mlp | Wide | Deep, Field(discriminator="type")]


class Inputs(Config):
    data: Annotated[str, Place] = ""


class Run(Config):
    name: str
    net: Net = Mlp()
    rivals: dict[str, Net] = {}
    source: str | Files = "log"
    lr: float = 1e-3
    steps: int | None = None
    at: tuple[int, ...] = (5,)
    inputs: Inputs = Inputs()
    compute: Compute | None = None

    @model_validator(mode="after")
    def _steps_are_possible(self) -> "Run":
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        return self


def run_of(text: str, *sets: str, folder: Path) -> Run:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load(Run, path, sets)


def run(**changes: object) -> Run:
    return validate(Run, {"name": "a", **changes}, where="test")


# --- YAML 1.2 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e+1", -5.0),
        ("+1", 1),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2022-05-04", "2022-05-04"),
        ("=", "="),
        ("<<", "<<"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("0b1", "0b1"),
        ("[1, no]", [1, "no"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text, where="test")
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_are_numbers_of_yaml_but_no_values_of_a_config(tmp_path):
    assert parse_yaml("[-.inf, .NaN]", where="test")[0] == float("-inf")
    with pytest.raises(ConfigError, match=r"lr: Input should be a finite number; found nan"):
        run_of("{name: a, lr: .nan}", folder=tmp_path)


def test_a_key_that_stands_twice_is_an_error_with_its_line():
    with pytest.raises(ConfigError, match=r"run.yaml, line 3, .*'a' stands twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", where="run.yaml")
    with pytest.raises(ConfigError, match="'1' stands twice"):
        parse_yaml("x: {1: a, '1': b}", where="run.yaml")


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: 'b", "a: b: c", "a: !!python/object x", "\x00", "a: 1\n---\nb: 2", "? [a]\n: 1"],
)
def test_text_that_is_no_yaml_is_one_line_naming_the_file(text):
    with pytest.raises(ConfigError, match=r"run.yaml.* is not valid YAML: ") as caught:
        parse_yaml(text, where="run.yaml")
    assert "\n" not in str(caught.value)


def test_a_mapping_that_holds_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold plain data"):
        run_of("name: a\nrivals: &x\n  r: *x\n", folder=tmp_path)


# --- Files -----------------------------------------------------------------------------------


def test_a_missing_file_a_directory_and_bytes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere.yaml; check the path"):
        load(Run, tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory, a YAML file is needed"):
        load(Run, tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(Run, tmp_path / "x.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold a mapping of keys to values, found list"):
        run_of("- a\n", folder=tmp_path)


def test_an_empty_file_misses_what_is_required(tmp_path):
    with pytest.raises(ConfigError, match="name: Field required"):
        run_of("", folder=tmp_path)


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


# --- Digest ----------------------------------------------------------------------------------

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


# --- Round trip ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["1e-3", "no", "null", "~", "", "0x1f", "0o17", "1_000", "12:30", "2020-01-01", "a: b", "- x",
     "# c", " lead", "trail ", "=", "<<", "two\nlines", "1.", "-.5", ".inf", "\t", "\x07", "@x",
     "%", "`", "\x85", "\u2028", "\r\n", "中文", "\U0001f600", "'", '"', "true", "{a}", "[a]", "*a", "&a", "!a"],
)  # fmt: skip
def test_what_is_written_is_read_back_equal(text, tmp_path):
    before = run(name=text, source={"path": "p", "columns": {text: text, "x" + text: "y"}})
    assert run_of(before.to_yaml(), folder=tmp_path) == before


@pytest.mark.parametrize("number", [1e-7, 1e22, 0.1, 1.0, -0.0, 1e-300, 123456789.123456789])
def test_numbers_are_read_back_to_the_last_bit(number, tmp_path):
    assert repr(run_of(run(lr=number).to_yaml(), folder=tmp_path).lr) == repr(number)
