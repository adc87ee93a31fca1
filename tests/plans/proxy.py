"""A proxy that counts round trips on the wire, so that no layer of ours is asked how many it made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

ENDS_A_ROUND_TRIP = b"SQ"  # Sync and Query: the server answers them, and the client waits (PostgreSQL, chapter 54)
PORT = 5432


class CountingProxy:
    """Passes one server's protocol on, and counts the client's messages that end a round trip."""

    def __init__(self, server_url: str, directory: Path) -> None:
        parts = urlsplit(server_url)
        query = parse_qs(parts.query)
        self._socket = Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}" if "host" in query else None
        self._address = (parts.hostname, parts.port or PORT)
        credentials = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{credentials}@", query=f"host={directory}&port={PORT}"))
        self.path = directory / f".s.PGSQL.{PORT}"
        self.round_trips = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        if self._socket:
            server_reader, server_writer = await asyncio.open_unix_connection(str(self._socket))
        else:
            server_reader, server_writer = await asyncio.open_connection(*self._address)
        try:
            await asyncio.gather(self._count(reader, server_writer), _copy(server_reader, writer))
        finally:
            server_writer.close()
            writer.close()

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = True  # the first message has no type
        while True:
            try:
                head = await reader.readexactly(4 if start else 5)
                rest = await reader.readexactly(int.from_bytes(head[-4:]) - 4)
            except asyncio.IncompleteReadError:
                writer.close()
                return
            self.round_trips += not start and head[:1] in ENDS_A_ROUND_TRIP
            start = False
            writer.write(head + rest)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def counting_proxy(server_url: str, directory: Path) -> AsyncIterator[CountingProxy]:
    """A proxy to the server at `server_url`, listening in `directory`."""
    proxy = CountingProxy(server_url, directory)
    server = await asyncio.start_unix_server(proxy.serve, path=str(proxy.path))
    async with server:
        yield proxy
