"""Where the broker's jars come from, against a Maven repository of our own."""

import asyncio
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jgo.constants import MAVEN_CENTRAL_URL

from services.embedded.jars import COORDINATES, KAFKA

_FETCH = """
import asyncio, sys
from services.embedded.errors import StackError
from services.embedded.jars import class_path
try:
    print(asyncio.run(class_path(sys.argv[1])))
except StackError as error:
    sys.exit(f"{error.message}|{error.remedy}")
"""


class _Maven:
    """A repository with the coordinates we ask for, each a jar without dependencies."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()  # answered once with half of their bytes
        self.requests: list[str] = []
        self.url = ""
        for coordinate in COORDINATES:
            group, name, version = coordinate.rstrip("!").split(":")
            path = f"/{group.replace('.', '/')}/{name}/{version}/{name}-{version}"
            self.files[f"{path}.pom"] = (
                f"<project><modelVersion>4.0.0</modelVersion><groupId>{group}</groupId>"
                f"<artifactId>{name}</artifactId><version>{version}</version></project>"
            ).encode()
            jar = io.BytesIO()
            with zipfile.ZipFile(jar, "w") as archive:
                archive.writestr("content", os.urandom(100_000))
            self.files[f"{path}.jar"] = jar.getvalue()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.requests.append(path)
        if path.endswith(".sha1") and path[:-5] in self.files:
            body = hashlib.sha1(self.files[path[:-5]], usedforsecurity=False).hexdigest().encode()
        else:
            body = self.files.get(path, b"")
        status = "200 OK" if body else "404 Not Found"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        if path in self.cut:
            self.cut.remove(path)
            body = body[: len(body) // 2]
        writer.write(body)
        await writer.drain()
        writer.close()

    @property
    def jars(self) -> list[str]:
        return [path for path in self.files if path.endswith(".jar")]


@pytest.fixture
async def maven() -> AsyncIterator[_Maven]:
    repository = _Maven()
    server = await asyncio.start_server(repository.answer, "127.0.0.1", 0)
    repository.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield repository


async def _fetch(home: Path, url: str) -> tuple[int, str]:
    home.mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _FETCH, url),
        env={"HOME": str(home), "PATH": os.defpath, "https_proxy": "http://127.0.0.1:1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode().strip()


def _cached(home: Path) -> list[str]:
    return sorted(path.name for path in (home / ".cache/order-backend" / f"kafka-{KAFKA}").glob("*"))


async def test_jars_are_fetched_once_for_starts_that_come_at_once_and_later(maven: _Maven, tmp_path: Path) -> None:
    results = await asyncio.gather(*(_fetch(tmp_path / "u", maven.url) for _ in range(2)))
    assert [code for code, _ in results] == [0, 0]
    assert sorted(path for path in maven.requests if path.endswith(".jar")) == sorted(maven.jars)  # each once
    assert _cached(tmp_path / "u") == sorted(Path(path).name for path in maven.jars)

    code, _ = await _fetch(tmp_path / "u", "https://nobody.invalid")  # no network any more
    assert code == 0


async def test_a_download_that_was_cut_leaves_nothing_broken_behind(maven: _Maven, tmp_path: Path) -> None:
    maven.cut = {maven.jars[0]}
    code, message = await _fetch(tmp_path / "u", maven.url)
    assert code == 1, message
    assert _cached(tmp_path / "u") == []

    code, message = await _fetch(tmp_path / "u", maven.url)
    assert code == 0, message
    for name in _cached(tmp_path / "u"):
        with zipfile.ZipFile(tmp_path / "u/.cache/order-backend" / f"kafka-{KAFKA}" / name) as jar:
            assert jar.testzip() is None


async def test_what_maven_has_already_is_used_unless_it_is_broken(maven: _Maven, tmp_path: Path) -> None:
    local = tmp_path / "u" / ".m2" / "repository"
    for path, body in maven.files.items():
        file = local / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body[: len(body) // 2] if path == maven.jars[0] else body)
    before = {path: path.read_bytes() for path in local.rglob("*") if path.is_file()}

    code, message = await _fetch(tmp_path / "u", maven.url)
    assert code == 0, message
    assert maven.jars[0] in maven.requests
    assert {path: path.read_bytes() for path in local.rglob("*") if path.is_file()} == before  # it is not ours

    maven.requests.clear()
    (local / maven.jars[0][1:]).write_bytes(maven.files[maven.jars[0]])
    (tmp_path / "v").mkdir()
    (tmp_path / "u" / ".m2").rename(tmp_path / "v" / ".m2")
    code, message = await _fetch(tmp_path / "v", maven.url)
    assert code == 0, message
    assert maven.requests == []


async def test_no_way_to_the_jars_is_told_with_its_remedies(tmp_path: Path) -> None:
    code, message = await _fetch(tmp_path / "u", MAVEN_CENTRAL_URL)
    assert code == 1
    assert "no way to Kafka's jars" in message
    for remedy in ("https_proxy", "ORDERS_MAVEN_URL", "ORDERS_KAFKA_URL", "docker compose"):
        assert remedy in message
    assert "Traceback" not in message
