"""`score` and `select` killed in mid-run, and called again with other workers: the same answers, and
nothing is measured twice. One Ray serves all of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layer_select.cli import main
from layer_select.plan import Plan
from layer_select.scores import Scores
from rayrun.ray.session import session
from tests.layer_select.importance.test_score_run import (
    METHODS,
    REMOVAL,
    alone,
    assert_same,
    configured,
)
from tests.layer_select.selection.test_select_run import selected, with_settings

KILL_AFTER_S = 240
SHAPLEY = {"type": "shapley", "permutations": 16}


def killed(verb: str, arguments: list[str], journal: Path, entries: int) -> None:
    """Start the command line in a process group of its own, and kill it once so many sets of layers
    stand in the journal.
    """
    command = [sys.executable, "-m", "layer_select.cli", verb, *arguments]
    child = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + KILL_AFTER_S
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") <= entries:
            assert child.poll() is None, child.stdout.read().decode()
            assert time.monotonic() < until, "nothing is measured"
            time.sleep(0.01)
        assert child.poll() is None
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.whole
def test_killed_runs_go_on_and_workers_make_no_difference(tiny_config, tiny_model, tmp_path):
    """Scores by two workers that share the blocks out (ZeRO-3), also of sets of layers; a plan that
    one worker began and two end. Both are those of a single process.
    """
    import ray

    methods = (*METHODS, *REMOVAL, SHAPLEY)
    expected = alone(configured(tiny_config, tiny_model, methods=methods), tmp_path / "alone")
    shared = {"methods": methods, "execution": {"type": "zero3"}}
    config = configured(tiny_config, tiny_model, workers=2, **shared)
    config = with_settings(config, ["select.budget.share=0.34", "select.bootstrap=200"])
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(config.to_yaml())
    with session(config.compute):
        address = ray.get_runtime_context().gcs_address
        compute = f"compute={{type: attached, address: '{address}', workers: %d}}"
        call = [str(path), "--set", compute % 2, "--out", str(out)]
        killed("score", call, tmp_path / "out.scoring" / "coalitions.jsonl", entries=13)
        assert main(["score", *call]) == 0
        found = Scores.read(str(out), model=expected.model, task=expected.task)
        # Leaving one out was measured before the kill, so were the samples of the pass.
        assert found.methods["leave_one_out"].details["block_runs"] == 0
        assert expected.methods["leave_one_out"].details["block_runs"] > 0
        assert_same(found, expected, rtol=1e-9)
        assert found.pairs == expected.pairs
        assert not (tmp_path / "out.scoring").exists()

        whole = with_settings(config, ["score.execution={type: whole}"])
        path.write_text(whole.to_yaml())
        out = tmp_path / "plan"
        call = [str(path), "--set", compute % 1, "--out", str(out)]
        killed("select", call, tmp_path / "plan.selecting" / "calibration.jsonl", entries=12)
        assert main(["select", str(path), "--set", compute % 2, "--out", str(out)]) == 0
    plan = selected(whole, tmp_path / "selected")
    resumed = Plan.read(str(out), plan.model)
    assert resumed.cost["evaluations"] < plan.cost["evaluations"]
    assert resumed.model_copy(update={"cost": plan.cost}) == plan
    # A second call finds what stands there; Ray is not even needed.
    before = (out / "plan.json").stat().st_mtime_ns
    assert main(["select", str(path), "--out", str(out)]) == 0
    assert (out / "plan.json").stat().st_mtime_ns == before
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["next_item"]["loss"] == pytest.approx(expected.loss, rel=1e-9)
    assert result["details"]["concentration"]["fisher"]["low"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Upper layers against lower ones" in page
    assert page.count("<svg") >= 3  # ranks, agreement, pairs of CKA
