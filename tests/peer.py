"""A real HTTP server that may be well, answer 500, accept and never answer, or be gone: at one port."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

Mode = Literal["well", "500", "frozen", "refused"]


class Peer:
    """Starts well: then `answer` gives the body of a 200 for a path."""

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        self._answer = answer
        self._mode: Mode = "well"
        self._server: asyncio.Server | None = None
        self._held: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.asked = 0  # requests that it has read

    @property
    def url(self) -> str:
        """Where it is, however it is."""
        return f"http://127.0.0.1:{self._port}"

    async def become(self, mode: Mode) -> None:
        """From now on it is so; who still waits for an answer is cut off."""
        self._mode = mode
        for writer in self._held:
            writer.close()
        if mode == "refused" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refused" and self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._held.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if self._mode == "frozen":
                await reader.read()  # until either side leaves
            else:
                status, body = (200, self._answer(head.split()[1].decode())) if self._mode == "well" else (500, b"{}")
                writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)))
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller has left
        finally:
            self._held.discard(writer)
            writer.close()


@asynccontextmanager
async def serving_peer(answer: Callable[[str], bytes]) -> AsyncIterator[Peer]:
    """One, until the end of the block."""
    peer = Peer(answer)
    await peer.become("well")
    try:
        yield peer
    finally:
        await peer.become("refused")
