"""A verb to be run elsewhere: what is asked for, where its configuration and its record lie
meanwhile, and what its command is. The same for a job of a dashboard and for one of Kubernetes.
"""

import functools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rayrun import storage, store, yaml12
from rayrun.config import Config, Json, digest_of
from rayrun.metrics import RESULT_FILE, Result
from rayrun.ray.compute import AttachedCompute, KubeRayCompute
from rayrun.verb import Verb

GRACE_S = 30
"""How long a job that was told to stop may clean up; Ray's default is 3 s."""
ID_DIGITS = 12
DATA = "INFNET_DATA"
CONFIG_FILE, RECORD_FILE = "config.yaml", "record.json"


@dataclass(frozen=True)
class Submitted:
    """What a job left."""

    record: Json
    """As the job's own `--record`."""
    result: Result | None
    """Of a job that had succeeded before; None where its log has been shown."""


@dataclass(frozen=True)
class Request:
    """One call of a verb, to be made elsewhere."""

    prog: str
    verb: Verb
    config: Config
    flags: Mapping[str, Any]
    place: str
    """Absolute: the output, or the store."""
    stored: bool
    """`place` is a store."""

    @property
    def compute(self) -> AttachedCompute | KubeRayCompute:
        """Where to."""
        compute: Any = getattr(self.config, "compute")  # noqa: B009 - any product's
        return cast(AttachedCompute | KubeRayCompute, compute)

    @property
    def resolved(self) -> Json:
        """The configuration as the job reads it."""
        compute = self.compute
        cluster = AttachedCompute(
            workers=compute.workers,
            cpus_per_worker=compute.cpus_per_worker,
            gpus_per_worker=compute.gpus_per_worker,
            min_workers=compute.min_workers,
        )
        return self.config.to_dict() | {"compute": cluster.to_dict()}

    @property
    def asked_for(self) -> Json:
        """What the job's name follows from: not `compute`, and not the sources."""
        return {
            "config": self.resolved | {"compute": None},
            "flags": dict(self.flags),
            "place": [self.stored, self.place],
        }

    @property
    def name(self) -> str:
        """Submission id."""
        return f"{self.prog}-{self.verb.name}-{digits_of(self.asked_for)}"

    @property
    def above(self) -> str:
        """The store, or what the output lies in."""
        return self.place if self.stored else self.place.rstrip("/").rpartition("/")[0]

    @property
    def folder(self) -> str:
        """Where the configuration and the record of the job lie while it is there."""
        return storage.join(self.above, f".{self.name}")

    @functools.cached_property
    def digest(self) -> str:
        """Of the configuration."""
        return self.config.digest()

    @property
    def program(self) -> str:
        """Digest of the sources here."""
        return store.program_digest("rayrun", self.prog.replace("-", "_"))

    @property
    def command(self) -> list[str]:
        """The verb as the job calls it."""
        place = storage.join(self.folder, CONFIG_FILE)
        # -P: the sources are those of the job, not those of the folder that paths are relative to.
        command = ["python", "-P", "-m", f"{self.prog.replace('-', '_')}.cli", self.verb.name]
        command.append(place)
        for flag in self.verb.flags:
            if (value := self.flags[flag.name]) is not None:
                name = flag.name.replace("_", "-")
                command.append(str(value) if flag.positional else f"--{name}={value}")
        command.append(f"--{'store' if self.stored else 'out'}={self.place}")
        command.append(f"--record={storage.join(self.folder, RECORD_FILE)}")
        return command

    @property
    def variables(self) -> dict[str, str]:
        """Environment of the job."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}
        if data := storage.absolute(os.environ.get(DATA, "")):
            variables[DATA] = data
        return variables

    @property
    def metadata(self) -> dict[str, str]:
        """What a job says of itself."""
        return {
            "program": self.program,
            "prog": self.prog,
            "verb": self.verb.name,
            "config_digest": self.digest,
            "place": self.place,
        }

    def write(self) -> None:
        """Leave the configuration for the job, and nothing of an earlier one."""
        storage.remove(self.folder)
        text = yaml12.dump(self.resolved).encode()
        storage.write_bytes(storage.join(self.folder, CONFIG_FILE), text)

    def record(self) -> Json | None:
        """What the job wrote with `--record`, where this side sees it."""
        place = storage.join(self.folder, RECORD_FILE)
        return json.loads(storage.read_bytes(place)) if storage.exists(place) else None

    def standing(self, made_by: object) -> Result | None:
        """The result of a job that succeeded, if the same would be made and it is there.

        Args:
            made_by: the digest of the sources that made it.
        """
        if self.stored or not self.verb.store or made_by != self.program:
            return None
        if not storage.exists(storage.join(self.place, RESULT_FILE)):
            return None
        result = Result.read(self.place)
        return result if result.config_digest == self.digest else None

    def not_shared(self) -> str:
        """The sentence for a place where the job and this side do not meet."""
        return (
            f"{'--store' if self.stored else '--out'} ({self.place}) must be a folder that the "
            "cluster reaches by the same path, or s3://…; what the job wrote there is not here"
        )


def request(
    prog: str, verb: Verb, config: Config, flags: Mapping[str, Any], *, out: str, kept: str
) -> Request:
    """The request of a command line, with places that mean the same elsewhere.

    Args:
        prog: the program.
        verb: one that does not say `here`.
        config: its `compute` takes jobs.
        flags: values of the verb's own flags.
        out: of `--out`, where `kept` is empty.
        kept: of `--store`.
    """
    places = {flag.name for flag in verb.flags if flag.place}
    given = {n: storage.absolute(v) if n in places and v else v for n, v in flags.items()}
    return Request(prog, verb, config, given, storage.absolute(kept or out), bool(kept))


def digits_of(asked_for: Json) -> str:
    """The part of a job's name that follows from what is asked for."""
    return digest_of(asked_for).removeprefix("sha256:")[:ID_DIGITS]


def say(line: str) -> None:
    """Tell the person who called, beside what the job prints."""
    print(line, file=sys.stderr, flush=True)


class Shown:
    """Lines of a job as its program would have said them: from an error on, on stderr."""

    def __init__(self) -> None:
        self._to = sys.stdout

    def __call__(self, line: str) -> None:
        """Print one line."""
        if line.startswith("error: "):
            self._to = sys.stderr
        try:
            print(line, file=self._to, flush=True)
        except BrokenPipeError:  # the reader of our output has gone; how the job ends still counts
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._to.fileno())
