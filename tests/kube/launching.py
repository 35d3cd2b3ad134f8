"""Launching verbs on a simulated cluster, with commands that leave what real ones would."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayrun.config import Config, validate
from rayrun.kube import launch
from rayrun.kube.rayjob import rayjob
from rayrun.metrics import Result
from rayrun.ray.compute import Compute
from rayrun.ray.request import Request, Submitted, request
from rayrun.verb import Verb
from tests.kube.fake_plan import Submission
from tests.kube.simulated import Simulated

Json = Any


class Toy(Config):
    """The configuration of the verb."""

    name: str = "toy"
    rows: int = 3
    compute: Compute


VERB = Verb(name="train", help="", run="tests.kube.launching:nothing", config=Toy, store=True)


def nothing(config: Toy, out: str) -> None:
    """What the verb would do."""


def asked(folder: Path, *, out: str = "", rows: int = 3, **compute: Any) -> Request:
    """`infnet train` with its output on a claim that is mounted at `folder`, in both places."""
    given = {
        "type": "kuberay",
        "image": "example.com/ours:1",
        "volumes": [{"claim": "shared", "mount_path": str(folder)}],
        **compute,
    }
    config = validate(Toy, {"rows": rows, "compute": given}, where="the test")
    return request("infnet", VERB, config, {}, out=out or str(folder / "out"), kept="")


def leaves(wanted: Request) -> Callable[[Json, Submission, str], None]:
    """What a real command leaves at its output when it ends: for `Plan.on_end`."""

    def end(submission: Json, fate: Submission, status: str) -> None:
        if status == "STOPPED":
            return
        command = submission["entrypoint"]
        record = re.search(r"--record=(\S+)", command)
        assert record is not None
        done = status == "SUCCEEDED"
        if done:
            config = wanted.config
            result = Result.of("train", config, started=time.monotonic(), rows=config.rows)  # type: ignore[attr-defined]
            Path(wanted.place).mkdir(parents=True, exist_ok=True)
            result.write(Path(wanted.place))
        content = {"verb": "train", "uri": wanted.place, "key": "", "cached": False, "digest": ""}
        content |= {"exit_code": 0 if done else fate.exit_code}
        Path(record[1]).write_text(json.dumps(content), encoding="utf-8")

    return end


@dataclass
class Launched:
    """One call of the launcher, which it may survive."""

    cluster: Simulated
    wanted: Request
    error: BaseException | None = None
    result: Submitted | None = None
    said: list[str] = field(default_factory=list)

    def run(self) -> "Launched":
        """Launch, and keep what is raised."""
        try:
            self.result = launch.run(self.wanted, self.cluster.clock)
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
        return self


__all__ = ["Launched", "Toy", "asked", "leaves", "rayjob"]
