"""The launcher under random faults, each schedule on virtual time: nothing is left, no line is lost
or doubled, and the command ends as its job did. Run one alone: `-k "seed and 17]"`.
"""

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayrun.config import ConfigError, load
from rayrun.kube import launch
from rayrun.ray.request import Request, request
from rayrun.verb import Ended
from tests.kube.schedules import (
    BACKOFF,
    START_DEADLINE_S,
    Killed,
    MortalClock,
    Schedule,
    and_an_outage,
    arrange,
    check_lines,
    leave_result,
    random_schedule,
)
from tests.kube.simulated import Simulated, simulated

Json = Any
ROOT = Path(__file__).parents[2]
SEEDS = range(200)
KILLED = range(1000, 1040)
LOOKS = 4000
"""How often a launcher may look at the time: one that asks without end is ended."""
GONE_S = 60.0
"""Within how long all is gone."""


def asked(folder: Path, queue: str = "") -> Request:
    """`infnet prepare` for Kubernetes, its output on a claim."""
    from infnet.cli import VERBS
    from infnet.config import InfnetConfig

    compute = (
        "type: kuberay, image: example.com/infnet:1, workers: 2, "
        f"volumes: [{{claim: shared, mount_path: {folder}}}], backoff_limit: {BACKOFF}, "
        f"start_deadline_s: {START_DEADLINE_S}" + (f", queue: {queue}" if queue else "")
    )
    sets = ["train.strategy={type: ddp}", f"compute={{{compute}}}"]
    config = load(InfnetConfig, ROOT / "configs/infnet/smoke.yaml", sets)
    verb = next(verb for verb in VERBS if verb.name == "prepare")
    return request("infnet", verb, config, {}, out=str(folder / "out"), kept="")


@contextlib.contextmanager
def scheduled(
    schedule: Schedule, definitions: list[Json], folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Simulated, Request]]:
    wanted = asked(folder, schedule.queue)
    end = leave_result(wanted.config.digest())
    with simulated(definitions, schedule.plan, schedule.seed) as cluster:
        schedule.plan.on_end = and_an_outage(schedule, cluster, end)
        server, tokens = cluster.server, [cluster.server.token("launcher", EVERYTHING)]
        kubeconfig = server.kubeconfig(folder / "kubeconfig", token=tokens[0])
        patch.setenv("KUBECONFIG", str(kubeconfig))

        def write_token() -> str:
            tokens.append(server.token("launcher", EVERYTHING))
            server.kubeconfig(kubeconfig, token=tokens[-1])
            return tokens[-2]

        arrange(schedule, cluster, write_token)
        yield cluster, wanted


EVERYTHING = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]


def launched(wanted: Request, clock: Any) -> tuple[int | None, list[str], str]:
    """Exit code (None: killed), the lines of the job, and what was said."""
    out, err = io.StringIO(), io.StringIO()
    code: int | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            launch.run(wanted, clock)
        except ConfigError as error:
            code = 2
            err.write(f"error: {error}\n")
        except Ended as ended:
            code = ended.exit_code
        except Killed:
            code = None
    return code, out.getvalue().splitlines(), err.getvalue()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_left_and_no_line_lost_after_seed(
    seed: int, definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = random_schedule(seed)
    with scheduled(schedule, definitions_1_6, tmp_path, monkeypatch) as (cluster, wanted):
        code, shown, said = launched(wanted, MortalClock(cluster.clock, LOOKS))
        about = f"seed {seed}: {schedule}\n{said}"
        assert cluster.server.failures == [], about
        assert code in schedule.exit_codes(), about
        assert check_lines(cluster, shown) == [], about
        cluster.after(GONE_S)
        assert cluster.server.objects() == [], about
        assert not Path(wanted.folder).exists(), about


@pytest.mark.parametrize("seed", KILLED)
def test_a_launcher_that_is_killed_finds_its_job_again_after_seed(
    seed: int, definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    schedule = random_schedule(seed)
    schedule.plan.start.kind = ""
    made: list[str] = []
    with scheduled(schedule, definitions_1_6, tmp_path, monkeypatch) as (cluster, wanted):
        cluster.server.store.listeners.append(
            lambda change: (
                change.kind == "ADDED"
                and change.key == ("ray.io", "rayjobs")
                and made.append(change.thing["metadata"]["name"])
            )
        )
        looks = chance.randint(1, 120)
        code, shown, said = launched(wanted, MortalClock(cluster.clock, looks))
        about = f"seed {seed}, killed after {looks} looks at the time: {schedule}\n{said}"
        if code is None:
            assert [w for w in check_lines(cluster, shown) if "without a word" not in w] == [], (
                about
            )
            cluster.after(chance.choice((0, 1, 30)))
            code, shown, said = launched(wanted, MortalClock(cluster.clock, LOOKS))
            about += f"--- again\n{said}"
        assert code in schedule.exit_codes(), about
        assert len(made) == 1, about
        assert check_lines(cluster, shown) == [], about
        cluster.after(GONE_S)
        assert cluster.server.objects() == [], about


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_what_a_killed_launcher_leaves_goes_by_itself_after_seed(
    seed: int, definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = random_schedule(seed)
    with scheduled(schedule, definitions_1_6, tmp_path, monkeypatch) as (cluster, wanted):
        launched(wanted, MortalClock(cluster.clock, random.Random(seed).randint(5, 60)))
        cluster.after(4000)
        left = [name for name in cluster.server.objects() if not name.startswith("RayJob")]
        # With a queue of Kueue the operator removes all but the job itself and its service.
        assert left == [] or (schedule.queue and all(n.startswith("Service") for n in left))
        assert schedule.queue or cluster.server.objects() == []
