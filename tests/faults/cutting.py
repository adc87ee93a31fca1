"""A door in front of PostgreSQL that can be held shut for answers, and cut: what was held is then lost."""

import asyncio
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

_PORT = 5432


class Door:
    """Passes the protocol on. While `held`, what the server answers stays here, so that a commit is not heard of."""

    def __init__(self, server_url: str, directory: Path) -> None:
        parts = urlsplit(server_url)
        query = parse_qs(parts.query)
        self._server = Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}"
        self._path = directory / f".s.PGSQL.{_PORT}"
        self.url = urlunsplit(parts._replace(query=f"host={quote(str(directory))}&port={_PORT}"))
        self._open = asyncio.Event()
        self._open.set()
        self._hold_at: bytes | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None
        self.answers_lost = 0

    async def __aenter__(self) -> "Door":
        self._listening = await asyncio.start_unix_server(self._serve, str(self._path))
        self._path.chmod(0o777)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listening is not None
        self._listening.close()
        self.cut()

    def hold(self) -> None:
        """No answer passes from now on."""
        self._open.clear()

    def hold_at(self, request: bytes) -> None:
        """As `hold`, from when a client says that on: it is done, and not heard of."""
        self._hold_at = request

    def let_go(self) -> None:
        """What was held passes, and what comes after it."""
        self._open.set()

    @property
    def held(self) -> bool:
        """Whether answers stay here."""
        return not self._open.is_set()

    def cut(self) -> None:
        """Every connection is closed, what was held is lost, and new connections pass again."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._hold_at = None
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_unix_connection(str(self._server))
            self._writers |= {writer, server_writer}
            await asyncio.gather(self._pass(reader, server_writer), self._answer(server_reader, writer))
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if self._hold_at is not None and self._hold_at in data:
                    self._hold_at = None
                    self.hold()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._open.wait()
                if writer.is_closing():
                    self.answers_lost += 1
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
