"""The broker's jars from Maven Central: fetched once per machine, then used without a network."""

import asyncio
import errno
import fcntl
import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.status import Status

from services.embedded.errors import StackError, disk_full

KAFKA = "4.4.0"
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA}",
    # Kafka logs to SLF4J and brings log4j, but not the bridge between them: without it it is silent. The version is its
    # log4j's; "!" keeps the bridge's own table of versions, which names an older kafka-clients, out of this.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5!",
)
_LOCK_SECONDS = 0.1  # between looks whether another start has fetched them
_AT_ONCE = 4  # downloads; most jars are small, so waiting for answers is most of the time
_REPORT_SECONDS = 3.0  # between lines where there is no terminal to draw on


async def class_path(maven_url: str | None) -> str:
    """The Java class path of a broker, all of its jars on this disk and seen whole.

    StackError when they are not here and cannot be fetched. Two stacks may ask at once: the second waits for the first.
    """
    directory = cache_directory() / f"kafka-{KAFKA}"
    if not directory.is_dir():
        progress = _Progress()
        try:
            await asyncio.to_thread(_fetch, directory, maven_url, progress)
        except asyncio.CancelledError:
            progress.cancelled.set()  # the thread ends at its next piece; else Ctrl-C would wait for the whole download
            raise
    return f"{directory}{os.sep}*"


def cache_directory() -> Path:
    """Of this user, shared by all stacks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "order-backend"


def _fetch(directory: Path, maven_url: str | None, progress: "_Progress") -> None:
    """Fill `directory` in one step: it appears with all jars or not at all."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (directory.parent / "lock").open("w") as lock:
            while not _locked(lock):
                if progress.cancelled.wait(_LOCK_SECONDS):
                    return
            if not directory.is_dir():
                with progress.shown():
                    _fill(directory, maven_url, progress)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full(directory) from error
        raise _unreachable(maven_url, error) from error
    except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise _unreachable(maven_url, error) from error


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fill(directory: Path, maven_url: str | None, progress: "_Progress") -> None:
    # jgo writes a download straight to its final name and trusts it ever after, so a cut one would stay broken for good
    # in ~/.m2. Hence a repository of our own that is thrown away, and ~/.m2 only to read from, if what it has is whole.
    partial = directory.with_name(f"{directory.name}.partial")
    known = Path(os.environ.get("M2_REPO") or "~/.m2/repository").expanduser()
    try:
        jars = _resolve(partial, [known] if known.is_dir() else [], maven_url, progress)
    except OSError:
        raise
    except Exception:  # noqa: BLE001  a broken file there fails in whatever way its reader does
        jars = _resolve(partial, [], maven_url, progress)
    whole = partial / "jars"
    whole.mkdir()
    for jar in jars:
        shutil.copyfile(jar, whole / jar.name)
    whole.rename(directory)
    shutil.rmtree(partial)


def _resolve(repository: Path, known: list[Path], maven_url: str | None, progress: "_Progress") -> list[Path]:
    try:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415  a second start does without it
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415
    except ImportError as error:
        raise StackError(
            f"the wheel that fetches Kafka is missing ({error})", "Install `jgo`, or set ORDERS_KAFKA_URL."
        ) from error
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    context = MavenContext(
        resolver=PythonResolver(progress_callback=progress.file),
        repo_cache=repository,
        local_repos=known,
        remote_repos={"central": (maven_url or MAVEN_CENTRAL_URL).rstrip("/")},
    )
    inputs, transitive = context.resolver.resolve([context.create_dependency(coordinate) for coordinate in COORDINATES])
    wanted = [*inputs, *(found for found in transitive if found.scope in {"compile", "runtime"})]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda found: _checked(found.artifact.resolve()), wanted))


def _checked(jar: Path) -> Path:
    with zipfile.ZipFile(jar) as archive:  # a cut file has no directory at its end; every member carries its CRC
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"{jar}: {broken}")
    return jar


def _unreachable(maven_url: str | None, error: Exception) -> StackError:
    return StackError(
        f"no way to Kafka's jars at {maven_url or 'Maven Central'} ({type(error).__name__}: {str(error)[:200]})",
        "Set https_proxy or ORDERS_MAVEN_URL (a mirror of Maven Central), or ORDERS_KAFKA_URL to a broker of your own, "
        "or use docker compose.",
    )


class _Progress:
    """Jars and bytes so far, told to whoever waits; raises in the downloading thread once cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._jars = 0
        self._bytes = 0
        self._told = time.monotonic()
        self._console = Console(file=sys.stderr)
        self._status: Status | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A spinner on a terminal, else a line every few seconds."""
        if self._console.is_terminal:
            with self._console.status("Kafka: fetching jars, once") as self._status:
                yield
        else:
            yield

    @contextmanager
    def file(self, name: str, size: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG002  the resolver's signature
        """Called by the resolver around each download."""
        yield self._received
        with self._lock:
            self._jars += name.endswith(".jar")

    def _received(self, count: int) -> None:
        if self.cancelled.is_set():
            raise RuntimeError("cancelled")
        with self._lock:
            self._bytes += count
            text = f"Kafka: fetching jars, once: {self._jars} so far, {self._bytes / 1e6:.1f} of about 45 MB"
            if self._status is not None:
                self._status.update(text)
            elif time.monotonic() - self._told > _REPORT_SECONDS:
                self._told = time.monotonic()
                self._console.print(text, highlight=False)
