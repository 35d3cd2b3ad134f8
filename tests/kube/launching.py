"""Calls of the launcher, on the simulated cluster and the real one."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError, load
from rayrun.kube import launch
from rayrun.ray.request import Request, Submitted, request
from rayrun.verb import Ended
from tests.kube.schedules import Killed, leave_result

Json = Any
ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs/infnet/smoke.yaml"
FEW = ("data.source.rows=300", "data.source.users=40")
EVERYTHING = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]


def asked(
    cluster: Any, verb: str = "prepare", sets: tuple[str, ...] = (), **compute: Any
) -> Request:
    """A verb of `infnet` on a cluster, with its output in a place that its pods share."""
    from infnet.cli import VERBS
    from infnet.config import InfnetConfig

    given = {"type": "kuberay", "image": cluster.image, **cluster.compute, **compute}
    config = load(InfnetConfig, SMOKE, [*FEW, *sets, f"compute={json.dumps(given)}"])
    chosen = next(one for one in VERBS if one.name == verb)
    flags = {flag.name: flag.default for flag in chosen.flags}
    wanted = request("infnet", chosen, config, flags, out=f"{cluster.place}/out", kept="")
    if not cluster.real:
        cluster.kuberay.plan.on_end = leave_result(config.digest())
    return wanted


@dataclass
class Launched:
    """What came of a call."""

    code: int | None
    """Exit code; None: the launcher was killed."""
    shown: list[str]
    """Lines of the job."""
    said: str
    """What the launcher said of it, and its error."""
    found: Submitted | None = None


def launched(wanted: Request, clock: Any) -> Launched:
    """Launch as the command line does."""
    out, err = io.StringIO(), io.StringIO()
    done = Launched(0, [], "")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            done.found = launch.run(wanted, clock)
        except ConfigError as error:
            done.code = 2
            err.write(f"error: {error}\n")
        except Ended as ended:
            done.code = ended.exit_code
        except KeyboardInterrupt:
            done.code = 130
        except Killed:
            done.code = None
    done.shown, done.said = out.getvalue().splitlines(), err.getvalue()
    return done


class InterruptingClock:
    """The n-th look at the time is interrupted by Ctrl-C, once."""

    def __init__(self, clock: Any, looks: int) -> None:
        self._clock, self._left = clock, looks

    def now(self) -> float:
        self._look()
        return self._clock.now()

    def sleep(self, seconds: float) -> None:
        self._look()
        self._clock.sleep(seconds)

    def _look(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
