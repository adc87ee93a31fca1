"""k6 and Locust, each run as a child on one scenario; what it has counted, its samples, and the processor it took."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from loadtests.load import samples
from loadtests.load.samples import Samples
from loadtests.load.scenario import FOLDER, LoadError
from loadtests.load.shop import HOST

JUDGED: Final = {"k6": (0, 99), "locust": (0, 1)}  # exit codes: every objective is met; one is missed
WORKERS: Final = 2
MARK: Final = "The warm-up is over."  # a line in a generator's log
LOOK_SECONDS: Final = 0.05
GRACE_SECONDS: Final = 90.0  # over the planned time, for its start and the last answers


@dataclass(frozen=True)
class Load:
    """What is asked of a generator. `rate` is in requests a second."""

    scenario: str
    rate: float
    seconds: float
    warm_seconds: float
    objectives: Path
    roll_over: bool = False


@dataclass(frozen=True)
class Measured:
    """What a generator says: its own count of orders acknowledged, journeys it dropped, requests that failed."""

    samples: Samples
    acknowledged: int
    dropped: int
    failed: int
    missed: list[str]
    seconds: float
    cpu_seconds: float

    @property
    def cores(self) -> float:
        """How much of the machine's processors it took, itself and its workers."""
        return self.cpu_seconds / self.seconds


class Ended(NamedTuple):
    """How long a generator ran, and what of the processor it took."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Generator:
    """`program` makes the load; `missing` is what to say when it is not here."""

    name: str
    program: Path
    missing: str

    @property
    def installed(self) -> bool:
        """Whether this machine has it."""
        return self.program.is_file()

    async def run(self, load: Load, targets: Path, folder: Path) -> "Ended":
        """It has run to its end. LoadError when it failed for another reason than a missed objective.

        Leaves its raw samples, its summary and its log in `folder`.
        """
        raw, summary = self._raw(folder), self._summary(folder)
        environment = {
            "LOAD_SCENARIO": load.scenario,
            "LOAD_RATE": f"{load.rate:g}",
            "LOAD_SECONDS": f"{load.seconds:g}",
            "LOAD_WARM_SECONDS": f"{load.warm_seconds:g}",
            "LOAD_OBJECTIVES": str(load.objectives),
            "LOAD_TARGETS": str(targets),
            "LOAD_SAMPLES": str(raw),
            "LOAD_SUMMARY": str(summary),
            "LOAD_MARK": MARK,
        }
        log = self._log(folder)
        code, seconds, cpu_seconds = await _ended(
            [str(self.program), *_ARGUMENTS[self.name](raw)],
            environment,
            log,
            load.warm_seconds + load.seconds + GRACE_SECONDS,
        )
        if code not in JUDGED[self.name] or not summary.exists():
            raise LoadError(f"{self.name} ended with {code}, see {log}:\n{log.read_text()[-2000:]}")
        return Ended(seconds, cpu_seconds)

    def measured(self, folder: Path, ended: "Ended") -> Measured:
        """What it has left there, which takes a while when it has asked for long."""
        said = json.loads(self._summary(folder).read_text())
        return _READERS[self.name](said, self._raw(folder), ended.seconds, ended.cpu_seconds)

    def version(self) -> str:
        """As it says itself: its name and its number."""
        said = subprocess.run(
            [str(self.program), _VERSION[self.name]], check=True, capture_output=True, text=True, timeout=GRACE_SECONDS
        )
        return " ".join(said.stdout.split()[:2])

    async def begun(self, folder: Path) -> None:
        """The generator that runs there has warmed up: what it asks from now on is measured."""
        log = self._log(folder)
        while not (log.exists() and MARK in log.read_text()):
            await asyncio.sleep(LOOK_SECONDS)

    def _raw(self, folder: Path) -> Path:
        return folder / f"{self.name}.csv"

    def _summary(self, folder: Path) -> Path:
        return folder / f"{self.name}.json"

    def _log(self, folder: Path) -> Path:
        return folder / f"{self.name}.log"


def k6() -> Generator:
    """Where K6 says, else where `make tools` puts it."""
    default = Path.home() / ".cache" / "order-backend" / "bin" / "k6"
    return Generator("k6", Path(os.environ.get("K6") or default), "k6 is not here: `make tools` builds it (needs Go)")


def locust() -> Generator:
    """Where LOCUST says, else in an environment of its own: see loadtests/locust/requirements.in."""
    default = FOLDER / "locust" / ".venv" / "bin" / "locust"
    return Generator("locust", Path(os.environ.get("LOCUST") or default), "Locust is not here: `make load` installs it")


def _k6_arguments(raw: Path) -> list[str]:
    return [
        "run",
        "--quiet",
        "--no-usage-report",
        "--address",
        "",
        "--out",
        f"csv={raw}",
        str(FOLDER / "k6" / "main.js"),
    ]


def _locust_arguments(_: Path) -> list[str]:
    port = str(_free_port())
    return [
        *("--locustfile", str(FOLDER / "locust" / "locustfile.py"), "--headless", "--only-summary"),
        *("--processes", str(WORKERS), "--stop-timeout", "30", "--skip-log-setup"),
        *("--master-bind-host", HOST, "--master-bind-port", port, "--master-host", HOST, "--master-port", port),
    ]


def _k6_measured(said: dict[str, Any], raw: Path, seconds: float, cpu_seconds: float) -> Measured:
    metrics: dict[str, dict[str, Any]] = said["metrics"]

    def count(name: str) -> int:
        return int(metrics[name]["values"]["count"]) if name in metrics else 0

    missed = [
        f"{name}: {expression} does not hold ({_values(metric)})"
        for name, metric in metrics.items()
        for expression, verdict in metric.get("thresholds", {}).items()
        if not verdict["ok"]
    ]
    return Measured(
        samples=samples.of_k6(samples.rows(raw)),
        acknowledged=count("acknowledged"),
        dropped=count("dropped_iterations"),
        failed=count("failed"),
        missed=missed,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def _values(metric: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in metric["values"].items())


def _locust_measured(said: dict[str, Any], raw: Path, seconds: float, cpu_seconds: float) -> Measured:
    found = samples.of_locust(samples.rows(raw), warm_at=said["warm_at"])
    return Measured(
        samples=found,
        acknowledged=said["acknowledged"],
        dropped=said["dropped"],
        failed=said["failed"],
        missed=said["missed"],
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


_ARGUMENTS: Final[dict[str, Callable[[Path], list[str]]]] = {"k6": _k6_arguments, "locust": _locust_arguments}
_VERSION: Final = {"k6": "version", "locust": "--version"}
_READERS: Final[dict[str, Callable[[dict[str, Any], Path, float, float], Measured]]] = {
    "k6": _k6_measured,
    "locust": _locust_measured,
}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


async def _ended(
    command: Sequence[str], environment: Mapping[str, str], log: Path, within_seconds: float
) -> tuple[int, float, float]:
    """Exit code, seconds, and processor seconds of it and its children. LoadError when it does not end in time.

    Nothing of it is left, however this ends.
    """
    started, before = time.monotonic(), _children_cpu_seconds()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | environment | {"PYTHONPATH": str(FOLDER.parent)},
            stdout=output,
            stderr=output,
            start_new_session=True,  # a process group of its own, to be ended as one
        )
        try:
            async with asyncio.timeout(within_seconds):
                code = await process.wait()
        except TimeoutError:
            raise LoadError(f"{command[0]} has not ended after {within_seconds:g} s, see {log}") from None
        finally:
            with suppress(ProcessLookupError):  # all of it has ended
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return code, time.monotonic() - started, _children_cpu_seconds() - before


def _children_cpu_seconds() -> float:
    """Of children that have ended, with theirs (getrusage(2)). Parts of a stack of our own end later."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
