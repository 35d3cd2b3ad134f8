"""Every command that README.md and docs/ show is one that the programs take, on files that are there."""

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from infnet import cli as infnet
from layer_select import cli as layer_select
from rayrun.arguments import parser
from rayrun.cli import load_config, resolve

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

PROGRAMS = {"infnet": infnet.VERBS, "layer-select": layer_select.VERBS}

READERS_OWN = {"log.csv", "rows.parquet"}
"""Names that stand for a file of the reader."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
WRITTEN = re.compile(r"""open\(["']([^"']+)["'], ["']w["']""")
SAVED = re.compile(r"[Ss]ave this as `([^`]+)`")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@dataclass(frozen=True)
class Command:
    page: str
    words: tuple[str, ...]
    settings: tuple[str, ...]
    """`NAME=value` before the program."""
    made: frozenset[str]
    """What the commands and scripts of the page have written by then."""

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: str, text: str) -> list[Command]:
    """The commands of a page, in order."""
    found: list[Command] = []
    made = set(SAVED.findall(text))
    for language, block in FENCE.findall(text):
        if language == "python":
            made |= set(WRITTEN.findall(block))
        if language not in ("", "sh", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r"(\$ )?(\w+=\S* )*(infnet|layer-select|make|python3?) ", line):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            first = next(i for i, word in enumerate(words) if "=" not in word)
            command = Command(page, tuple(words[first:]), tuple(words[:first]), frozenset(made))
            found.append(command)
            if command.words[0] in PROGRAMS:
                made.add(output(command))
    return found


def parsed(command: Command):
    program = command.words[0]
    return parser(program, PROGRAMS[program]).parse_args(command.words[1:])


def output(command: Command) -> str:
    arguments = parsed(command)
    if arguments.out or "config" not in arguments:
        return arguments.out or "."
    return f"runs/{Path(arguments.config).stem}/{arguments.verb}"


COMMANDS = [command for page, text in TEXTS.items() for command in commands(page, text)]


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[0] == program]


def there(path: str, command: Command) -> bool:
    """Whether a path is in the checkout, was written earlier on the page, or is the reader's."""
    if "://" in path or path in READERS_OWN or path in command.made:
        return True
    return any(path.startswith(f"{made}/") for made in command.made) or (ROOT / path).exists()


def test_the_pages_show_commands():
    assert len(of("infnet")) >= 9
    assert len(of("layer-select")) >= 3
    assert len(of("make")) >= 5
    assert {command.page for command in COMMANDS} >= {"README.md", "docs/your-data.md"}


@pytest.mark.parametrize("command", [*of("infnet"), *of("layer-select")], ids=str)
def test_the_parser_takes_it_and_its_files_are_there(command):
    arguments = parsed(command)  # argparse ends the test on a wrong word
    overrides = [text.partition("=")[2] for text in getattr(arguments, "sets", [])]
    places = [
        getattr(arguments, "config", None) or getattr(arguments, "file", None),
        getattr(arguments, "data", None),
        *(text.removeprefix("@") for text in overrides if "/" in text or text.startswith("@")),
    ]
    for place in filter(None, places):
        assert there(place, command), f"{place} is neither in the checkout nor made before"


@pytest.mark.parametrize(
    "command",
    [c for program in PROGRAMS for c in of(program) if "configs/" in " ".join(c.words)],
    ids=str,
)
def test_its_configuration_is_valid_with_what_it_sets(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = parsed(command)
    verb = next(v for v in PROGRAMS[command.words[0]] if v.name == arguments.verb)
    assert load_config(resolve(verb.config), arguments.config, arguments.sets).name


@pytest.mark.parametrize("command", of("make"), ids=str)
def test_it_names_a_target_and_files_that_are_there(command):
    targets = [word for word in command.words[1:] if "=" not in word]
    assert targets
    assert set(targets) <= TARGETS
    for setting in (*command.settings, *command.words[1:]):
        name, _, value = setting.partition("=")
        if name == "CONFIG":
            assert there(value, command)


@pytest.mark.parametrize("command", [*of("python"), *of("python3")], ids=str)
def test_the_module_or_script_is_there(command):
    if command.words[1] == "-m":
        assert importlib.util.find_spec(command.words[2])
    else:
        assert there(command.words[1], command)


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_into_the_checkout_leads_somewhere(page):
    for target in LINK.findall(TEXTS[page]):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", TEXTS)
def test_every_python_block_is_python(page):
    for language, block in FENCE.findall(TEXTS[page]):
        if language == "python":
            compile(block, page, "exec")
