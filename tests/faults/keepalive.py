"""An HTTP client that costs little: one request at a time, over one connection that is kept open."""

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and when by the monotonic clock the request was sent and all of it was there."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: float
    received_at: float

    @property
    def version(self) -> int:
        """By the ETag."""
        return int(self.headers["etag"].strip('"'))

    @property
    def outcome(self) -> str:
        """Where it is from: hit, miss or bypass."""
        return self.headers["x-cache"]

    @property
    def code(self) -> str:
        """Of a refusal."""
        return str(orjson.loads(self.body)["code"])


class Connection:
    """To one process. After an error the next request opens it anew."""

    def __init__(self, url: str, token: str) -> None:
        self._host, _, port = urlsplit(url).netloc.partition(":")
        self._port, self._token = int(port), token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, content: object = None, **headers: str) -> Answer:
        """The answer; OSError when the process does not give one."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", f"Authorization: Bearer {self._token}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        body = b"" if content is None else orjson.dumps(content)
        if content is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        request = "\r\n".join([*lines, "", ""]).encode() + body
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            sent_at = time.monotonic()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            answered = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
            received = await reader.readexactly(int(answered.get("content-length", "0")))
        except EOFError as error:
            self.close()
            raise ConnectionError("it has ended") from error
        except BaseException:
            self.close()
            raise
        return Answer(int(head[0].split(" ")[1]), answered, received, sent_at, time.monotonic())

    def close(self) -> None:
        """It is closed."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
