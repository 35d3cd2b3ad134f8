"""Modelfiles, read back by the rules that Ollama documents."""

import json
import re

import pytest

from layer_select.export.modelfile import LONGEST_CONTEXT, modelfile
from rayrun.config import ConfigError

LAYERS = {
    "template": b'{{ if .System }}<|s|>{{ .System }}\n{{ end }}say "{{ .Prompt }}"',
    "params": json.dumps(
        {
            "stop": ["<|end|>", "\nUser:"],
            "temperature": 0.6,
            "num_keep": 4,
            "penalize_newline": True,
        }
    ).encode(),
    "system": "Du empfiehlst 视频.".encode(),
    "messages": b'[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\\n!"}]',
    "license": b"First\n\nSecond licence",
}


def parsed(text: str) -> list[tuple[str, str]]:
    """Instruction and argument: to the end of the line, or between triple quotation marks."""
    found, rest = [], text
    while rest.strip():
        name, rest = re.match(r"\s*([A-Z]+) ", rest)[1], re.sub(r"^\s*[A-Z]+ ", "", rest)
        before = ""
        if name in ("PARAMETER", "MESSAGE"):
            before, rest = rest.split(" ", 1)
        if rest.startswith('"""'):
            value, rest = rest[3:].split('"""\n', 1)  # what ends in a quotation mark has four
        else:
            value, rest = rest.split("\n", 1)
            value = value[1:-1] if value.startswith('"') else value
        found.append((f"{name} {before}".strip(), value))
    return found


def made(layers=LAYERS, **changes) -> str:
    settings = {"gguf": "m.gguf", "context": 512, "stop": ["<|eot|>"], "chat_template": False}
    return modelfile(layers.get, **{**settings, **changes})


def test_everything_of_the_source_is_there_to_the_letter():
    assert parsed(made()) == [
        ("FROM", "./m.gguf"),
        ("TEMPLATE", LAYERS["template"].decode()),
        ("PARAMETER stop", "<|end|>"),
        ("PARAMETER stop", "\nUser:"),
        ("PARAMETER temperature", "0.6"),
        ("PARAMETER num_keep", "4"),
        ("PARAMETER penalize_newline", "true"),
        ("PARAMETER num_ctx", "512"),
        ("SYSTEM", LAYERS["system"].decode()),
        ("MESSAGE user", "Hi"),
        ("MESSAGE assistant", "Hello\n!"),
        ("LICENSE", LAYERS["license"].decode()),
    ]


def test_without_an_ollama_source_it_stops_at_the_end_of_text():
    assert parsed(made({}, context=10**6, stop=["<|eot|>", "</s>", "<|eot|>"])) == [
        ("FROM", "./m.gguf"),
        ("TEMPLATE", "{{ .Prompt }}"),
        ("PARAMETER num_ctx", str(LONGEST_CONTEXT)),
        ("PARAMETER stop", "<|eot|>"),
        ("PARAMETER stop", "</s>"),
    ]
    assert "TEMPLATE" not in made({}, chat_template=True)  # Ollama takes it from the file


@pytest.mark.parametrize(
    ("layer", "content", "message"),
    [
        ("license", b'a """ b', "the license of the source holds three quotation marks in a row"),
        ("params", b"{", r"the params of the source must be JSON .*pull the model again"),
        ("params", b"[1]", r"params of the source must be a mapping of parameters .*found \[1\]"),
        ("messages", b'[{"role": "tool"}]', r"must be a list of messages with a role \(system, us"),
    ],
)
def test_what_a_modelfile_cannot_say_is_told(layer, content, message):
    with pytest.raises(ConfigError, match=message):
        made({layer: content})
