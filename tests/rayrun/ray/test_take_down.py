"""After a failed run: what it put on Serve is taken down (with a Serve: test_serve.py)."""

import json

from rayrun.metrics import Result
from rayrun.ray.take_down import take_down


def records(run, **deployed):
    """Steps of a run that deployed applications: whether each replaced one."""
    (run / "steps").mkdir(exist_ok=True)
    for name, replaced in deployed.items():
        details = {"url": "http://x", "application": name, "replaced": replaced}
        (run / name).mkdir()
        Result(
            verb="deploy", config_digest="", wall_s=0, peak_memory_bytes=1, details=details
        ).write(run / name)
        event = {"step": name, "state": "done", "uri": str(run / name)}
        (run / "steps" / f"{name}.json").write_text(json.dumps(event) + "\n")
    return list(deployed)


def test_a_cluster_that_is_gone_does_not_keep_the_report_from_being_written(tmp_path):
    (said,) = take_down(tmp_path, records(tmp_path, alone=False), "127.0.0.1:1")
    assert "put up `alone` and could not take it down:" in said
    assert "no Ray cluster answers" in said


def test_where_nothing_is_served_or_everything_replaced_something_nothing_is_done(tmp_path):
    assert take_down(tmp_path, records(tmp_path, first=True), "127.0.0.1:1") == []
    assert take_down(tmp_path, records(tmp_path, alone=False), "") == []
