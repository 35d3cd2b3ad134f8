"""The launcher under random faults, each schedule on virtual time: nothing is left, no line is lost
or doubled, and the command ends as its job did. One alone: `pytest FILE -k "seed and 17]"`.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayrun.ray.request import Request
from tests.kube.launching import EVERYTHING, asked, launched
from tests.kube.schedules import (
    BACKOFF,
    START_DEADLINE_S,
    MortalClock,
    Schedule,
    and_an_outage,
    arrange,
    check_lines,
    random_schedule,
)
from tests.kube.simulated import Simulated, simulated

Json = Any
LOOKS = 4000
"""How often a launcher may look at the time: one that asks without end is ended."""
GONE_S = 60.0
"""Within how long all is gone."""


@contextmanager
def scheduled(
    schedule: Schedule, definitions: list[Json], folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Simulated, Request]]:
    """A cluster to which a schedule happens, and what the launcher is asked for."""
    with simulated(definitions, schedule.plan, schedule.seed, place=str(folder)) as cluster:
        options: Json = {"backoff_limit": BACKOFF, "start_deadline_s": START_DEADLINE_S}
        if schedule.queue:
            options["queue"] = schedule.queue
        wanted = asked(cluster, **options)
        assert schedule.plan.on_end is not None
        schedule.plan.on_end = and_an_outage(schedule, cluster, schedule.plan.on_end)
        server, tokens = cluster.server, [cluster.server.token("launcher", EVERYTHING)]
        kubeconfig = server.kubeconfig(folder / "kubeconfig", token=tokens[0])
        patch.setenv("KUBECONFIG", str(kubeconfig))

        def write_token() -> str:
            tokens.append(server.token("launcher", EVERYTHING))
            server.kubeconfig(kubeconfig, token=tokens[-1])
            return tokens[-2]

        arrange(schedule, cluster, write_token)
        yield cluster, wanted


@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_left_and_no_line_lost_after_seed(
    seed: int,
    definitions_1_6: list[Json],
    definitions_1_7: list[Json],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = random_schedule(seed)
    definitions = (definitions_1_6, definitions_1_7)[seed % 2]
    with scheduled(schedule, definitions, tmp_path, monkeypatch) as (cluster, wanted):
        done = launched(wanted, MortalClock(cluster.clock, LOOKS))
        about = f"seed {seed}: {schedule}\n{done.said}"
        assert cluster.server.failures == [], about
        assert done.code in schedule.exit_codes(), about
        assert check_lines(cluster, done.shown) == [], about
        cluster.after(GONE_S)
        assert cluster.objects() == [], about
        assert not Path(wanted.folder).exists(), about


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_a_launcher_that_is_killed_finds_its_job_again_after_seed(
    seed: int, definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    schedule = random_schedule(seed)
    schedule.plan.start.kind = ""
    made: list[str] = []

    def heard(change: Any) -> None:
        if change.kind == "ADDED" and change.key == ("ray.io", "rayjobs"):
            made.append(change.thing["metadata"]["name"])

    with scheduled(schedule, definitions_1_6, tmp_path, monkeypatch) as (cluster, wanted):
        cluster.server.store.listeners.append(heard)
        looks = chance.randint(1, 120)
        done = launched(wanted, MortalClock(cluster.clock, looks))
        about = f"seed {seed}, killed after {looks} looks at the time: {schedule}\n{done.said}"
        if done.code is None:
            wrong = check_lines(cluster, done.shown)
            assert [text for text in wrong if "without a word" not in text] == [], about
            cluster.after(chance.choice((0, 1, 30)))
            done = launched(wanted, MortalClock(cluster.clock, LOOKS))
            about += f"--- again\n{done.said}"
        assert done.code in schedule.exit_codes(), about
        assert len(made) == 1, about
        assert check_lines(cluster, done.shown) == [], about
        cluster.after(GONE_S)
        assert cluster.objects() == [], about


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_what_a_killed_launcher_leaves_goes_by_itself_after_seed(
    seed: int, definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = random_schedule(seed)
    with scheduled(schedule, definitions_1_6, tmp_path, monkeypatch) as (cluster, wanted):
        launched(wanted, MortalClock(cluster.clock, random.Random(seed).randint(5, 60)))
        cluster.after(4000)
        # With a queue of Kueue the operator keeps the job itself and its service, without pods.
        kept = ("RayJob/", "Service/") if schedule.queue else ("nothing",)
        assert [name for name in cluster.objects() if not name.startswith(kept)] == []


def test_the_check_of_lines_finds_what_is_lost_doubled_or_out_of_order(
    definitions_1_6: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(0, random_schedule(0).plan)
    first, second = schedule.plan.submissions[0], schedule.plan.submissions[-1]
    first.lines, first.head_lost_s, first.unread_s = 20, 5.2, ()
    first.every_s, first.outcome, second.outcome = 1.0, "SUCCEEDED", "SUCCEEDED"
    schedule.plan.submissions, schedule.plan.start.kind = [first, second], ""
    with scheduled(schedule, definitions_1_6, tmp_path, monkeypatch) as (cluster, wanted):
        shown = launched(wanted, cluster.clock).shown
        assert check_lines(cluster, shown) == []
        (at,) = [i for i, line in enumerate(shown) if line.startswith("(the rest")]
        for wrong in (
            shown[: at - 1] + shown[at + 1 :],  # lost, and nothing says so
            shown[:2] + shown[3:],  # lost in the middle
            shown[:-1],  # lost at the end
            shown[:3] + shown[2:],  # doubled
            shown[: at + 1] + shown,  # shown twice
            shown[at + 1 :] + shown[: at + 1],  # out of order
            [shown[0].upper(), *shown[1:]],  # something else
        ):
            assert check_lines(cluster, wrong) != [], wrong
