import os
import pty
import subprocess
import sys

from rayrun import progress as module
from rayrun.progress import progress

LOOP = """
from rayrun.progress import progress
with progress(3, "training", unit="steps") as bar:
    for i in range(3):
        bar.advance(1, note=f"loss .{i}")
"""


def test_without_a_terminal_the_last_line_tells_all(capsys):
    with progress(2000, "training") as bar:
        bar.advance(500, note="loss .43")
        bar.advance(1500)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == "training: 2,000/2,000 steps (100%), 0 s elapsed, loss .43\n"


def test_without_a_terminal_a_line_comes_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with progress(None, "reading", unit="rows") as bar:
        bar.advance(10)
        bar.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["reading: 10 rows", "reading: 20 rows"]


def test_a_loop_that_fails_says_how_far_it_came(capsys):
    try:
        with progress(10, "training") as bar:
            bar.advance(4)
            raise KeyError
    except KeyError:
        pass
    assert "training: 4/10 steps (40%)" in capsys.readouterr().err


def test_a_loop_of_nothing_is_no_error(capsys):
    with progress(0, "training"):
        pass
    assert "training: 0/0 steps" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar_and_stdout_stays_clean():
    ours, theirs = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-c", LOOP],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        timeout=60,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert child.stdout == b""
    assert "━" in shown
    assert "3/3 steps" in shown
    assert "loss .2" in shown


def test_durations_are_readable():
    assert [module._duration(s) for s in (0.4, 59, 61, 3661)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 01 min",
    ]


def test_a_loop_that_turns_out_longer_says_so(capsys):
    with progress(1, "selecting") as bar:
        bar.advance(1)
        bar.expect(8)
        bar.advance(3)
    assert capsys.readouterr().err.splitlines()[-1].startswith("selecting: 4/8 steps (50%)")
