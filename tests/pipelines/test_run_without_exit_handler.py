"""A run whose KFP process ends before the exit handler: its end is written, and what it had put on
Serve is taken down.
"""

import json

from pipelines.run import run_and_report
from tests.rayrun.ray.test_take_down import records

BROKEN = "root: {dag: {tasks: {}}}\ncomponents: {}\n"


def test_what_it_had_deployed_is_taken_down_or_the_report_says_what_is_left(tmp_path):
    folder = tmp_path / "runs" / "broken"
    folder.mkdir(parents=True)
    steps = records(folder, alone=False)
    at = {"root": str(tmp_path), "serve_address": "127.0.0.1:1"}
    ended = run_and_report("recommender", BROKEN, at, folder, steps)
    assert ended.code != 0
    page = (folder / "report.html").read_text()
    assert "The run put up <code>alone</code> and could not take it down:" in page
    assert "no Ray cluster answers" in page
    assert json.loads((folder / "status.json").read_text())["steps"]["alone"]["state"] == "done"
