"""Many products in one request: each line has its verdict, each batch is whole, and doing it again is harmless."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from services.catalog import api, bulk
from services.catalog.settings import CatalogSettings
from services.common import ids
from services.common.ndjson import LINE_BYTES_MAX
from tests.catalog import TEAPOT, Catalogue, new_product_id
from tests.contracts.description import refused
from tests.faults.waiting import eventually
from tests.integration.catalog.test_races import NEW
from tests.integration.relay.conftest import metric
from tests.serving import serving

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

PATH = "/v1/products:bulk"
NDJSON = {"content-type": "application/x-ndjson"}


def line(product_id: str | None = None, **members: Any) -> bytes:
    """The teapot with these members, as a line."""
    return json.dumps({"product_id": product_id or new_product_id(), **TEAPOT, **members}).encode() + b"\n"


async def send(catalogue: Catalogue, body: bytes | AsyncIterator[bytes]) -> list[dict[str, Any]]:
    """The lines of the answer."""
    response = await catalogue.client.post(PATH, content=body, headers={**catalogue.auth(), **NDJSON}, timeout=60)
    assert response.status_code == 200, response.text
    return [json.loads(text) for text in response.text.splitlines()]


def told(verdicts: Iterable[dict[str, Any]]) -> list[str]:
    """Of each line what it did, or the code of why not."""
    return [verdict["problem"]["code"] if "problem" in verdict else verdict["result"] for verdict in verdicts]


async def stored(owner: "Connection") -> list[tuple[Any, ...]]:
    """All products and all events, as they are."""
    rows = await owner.fetch("SELECT * FROM catalog.products ORDER BY product_id")
    events = await owner.fetch("SELECT * FROM catalog.outbox ORDER BY aggregate_id, version")
    return [tuple(row) for row in (*rows, *events)]


async def test_each_line_is_created_replaced_or_left_as_it_is_and_leaves_the_event_a_put_leaves(
    catalogue: Catalogue, owner: "Connection"
) -> None:
    same, other, new = await catalogue.created(), await catalogue.created(), new_product_id()
    await owner.execute("TRUNCATE catalog.outbox, catalog.invalidations")
    *verdicts, end = await send(catalogue, line(same) + line(other, price=5) + line(new, name="Pot"))
    assert verdicts == [
        {"line": 1, "product_id": same, "result": "unchanged", "version": 1},
        {"line": 2, "product_id": other, "result": "replaced", "version": 2},
        {"line": 3, "product_id": new, "result": "created", "version": 1},
    ]
    assert end == {"result": "finished", "created": 1, "replaced": 1, "unchanged": 1, "error": 0}
    assert await catalogue.events(same) == []
    for product_id, type_ in ((other, "product.changed"), (new, "product.created")):
        (event,) = await catalogue.events(product_id)
        assert event["data"] == {"product": (await catalogue.get(f"/v1/products/{product_id}")).json()}
        assert (event["type"], event["actor"]) == (type_, f"staff:{catalogue.keeper}")
        assert event["slice"] == ids.shard_of(ids.from_text(product_id)) % ids.SLICES
    (told_,) = await owner.fetch("SELECT keys::text AS keys FROM catalog.invalidations")
    assert json.loads(told_["keys"]) == {"catalog:product": {str(ids.from_text(other)): 2}}


async def test_what_is_wrong_is_told_by_line_and_stops_no_other(catalogue: Catalogue, owner: "Connection") -> None:
    before = metric("bulk_lines_refused_total", code="invalid")
    good = [line() for _ in range(3)]
    body = good[0] + b"{\n\n" + line(price=0) + b" \r\n" + good[1].strip() + b"\r\n"
    body += b'{"product_id": "x"}\n' + b"x" * (LINE_BYTES_MAX + 1) + b"\n[]\nnull\n\xff\n" + good[2].strip()
    *verdicts, end = await send(catalogue, body)
    assert [(verdict["line"], code) for verdict, code in zip(verdicts, told(verdicts), strict=True)] == [
        *((1, "created"), (2, "malformed_json"), (4, "invalid"), (6, "created"), (7, "invalid")),
        *((8, "body_too_large"), (9, "invalid"), (10, "invalid"), (11, "malformed_json"), (12, "created")),
    ]
    assert verdicts[2]["problem"]["errors"][0]["at"] == "/price"
    assert verdicts[2]["problem"]["instance"] == PATH
    assert end == {"result": "finished", "created": 3, "replaced": 0, "unchanged": 0, "error": 7}
    assert await owner.fetchval("SELECT count(*) FROM catalog.products") == 3
    assert metric("bulk_lines_refused_total", code="invalid") == before + 4


async def test_the_same_product_twice_is_put_twice_in_the_order_of_its_lines(catalogue: Catalogue) -> None:
    product_id = new_product_id()
    prices = [7, 8, 8, 9, 7]
    *verdicts, _ = await send(catalogue, b"".join(line(product_id, price=price) for price in prices))
    assert [(verdict["result"], verdict["version"]) for verdict in verdicts] == [
        *(("created", 1), ("replaced", 2), ("unchanged", 2), ("replaced", 3), ("replaced", 4)),
    ]
    events = await catalogue.events(product_id)
    assert [event["data"]["product"]["price"] for event in events] == [7, 8, 9, 7]


async def test_all_of_it_again_writes_nothing(catalogue: Catalogue, owner: "Connection") -> None:
    body = b"".join(line(price=number) for number in range(1, 2 * bulk.BATCH_LINES + 2))
    first, again = await send(catalogue, body), None
    assert Counter(told(first)) == {"created": 2 * bulk.BATCH_LINES + 1, "finished": 1}
    assert [verdict["line"] for verdict in first[:-1]] == list(range(1, 2 * bulk.BATCH_LINES + 2))
    before = await stored(owner)
    again = await send(catalogue, body)
    assert Counter(told(again)) == {"unchanged": 2 * bulk.BATCH_LINES + 1, "finished": 1}
    assert await stored(owner) == before


async def test_nothing_is_an_answer_that_says_so(catalogue: Catalogue) -> None:
    for body in (b"", b"\n", b" \r\n\n"):
        assert told(await send(catalogue, body)) == ["finished"]


async def test_who_may_and_what_it_is_come_before_the_first_line(catalogue: Catalogue) -> None:
    assert refused(await catalogue.client.post(PATH, content=line(), headers=NDJSON)) == "401 unauthenticated"
    other = catalogue.auth("catalog:read orders:write")
    assert refused(await catalogue.client.post(PATH, content=line(), headers=NDJSON | other)) == "403 scope_missing"
    for media_type in ("application/json", "text/plain", ""):
        headers = {**catalogue.auth(), "content-type": media_type}
        response = await catalogue.client.post(PATH, content=line(), headers=headers)
        assert refused(response) == "415 media_type"
        assert response.headers["accept-post"] == "application/x-ndjson"


async def test_some_at_once_with_the_same_products_take_turns_and_every_version_has_its_event(
    catalogue: Catalogue, owner: "Connection"
) -> None:
    known, fresh = [await catalogue.created() for _ in range(5)], [new_product_id() for _ in range(200)]

    async def put(number: int) -> list[dict[str, Any]]:
        wanted = [*known, *fresh] if number % 2 else [*reversed(fresh), *reversed(known)]
        return await send(catalogue, b"".join(line(product_id, price=number + 1) for product_id in wanted))

    for answer in await asyncio.gather(*map(put, range(3))):
        assert set(told(answer)) <= {"created", "replaced", "unchanged", "finished"}
        assert told(answer)[-1] == "finished"
    gaps = await owner.fetch(
        "SELECT product_id FROM catalog.products p WHERE version <> (SELECT count(*) FROM catalog.outbox o"
        " WHERE o.aggregate_id = p.product_id) OR version <> (SELECT max(version) FROM catalog.outbox o"
        " WHERE o.aggregate_id = p.product_id)"
    )
    assert gaps == []


async def test_a_product_that_somebody_creates_meanwhile_is_replaced(catalogue: Catalogue, owner: "Connection") -> None:
    product_id = new_product_id()
    async with owner.transaction():
        await owner.execute(
            "INSERT INTO catalog.products (product_id, name, description, price, currency, active, version, updated_at)"
            " VALUES ($1, 'Other', '', 1, 'USD', TRUE, 1, now())",
            ids.from_text(product_id),
        )
        sending = asyncio.create_task(send(catalogue, line() + line(product_id)))

        async def waits() -> bool:
            return bool(await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(waits, "it waits")
    verdicts = await sending
    assert told(verdicts) == ["created", "replaced", "finished"]
    assert verdicts[1]["version"] == 2


class Upload:
    """A client that writes and reads when the test says so (HTTP/1.1, chunked)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._lines = b""

    @classmethod
    async def begun(cls, port: int, catalogue: Catalogue) -> "Upload":
        """Its headers are sent."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)  # else it takes megabytes unread
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        upload = cls(*await asyncio.open_connection(sock=connection))
        headers = {"Host": "x", "Transfer-Encoding": "chunked", **NDJSON, **catalogue.auth()}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        upload.writer.write(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode())
        return upload

    async def send(self, content: bytes) -> None:
        """A piece of the body; none is its end."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(content), content))
        await self.writer.drain()

    async def head(self) -> str:
        """Status line and headers of the answer."""
        return (await self._reader.readuntil(b"\r\n\r\n")).decode()

    async def verdicts(self, count: int) -> list[dict[str, Any]]:
        """The next so many lines of the answer."""
        while self._lines.count(b"\n") < count:
            size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
            assert size, f"the answer has ended: {self._lines!r}"
            self._lines += (await self._reader.readexactly(size + 2))[:-2]
        *found, self._lines = self._lines.split(b"\n", count)
        return [json.loads(text) for text in found]

    def close(self) -> None:
        """Gone, without a word."""
        self.writer.transport.abort()


async def test_verdicts_come_while_a_slow_client_still_sends(
    catalogue: Catalogue, catalog_settings: CatalogSettings
) -> None:
    async with serving(api.create_app(catalog_settings)) as port:
        upload = await Upload.begun(port, catalogue)
        half = line()
        await upload.send(line() + half[:30])
        assert "200 OK" in await upload.head()
        assert told(await upload.verdicts(1)) == ["created"]
        await upload.send(half[30:])
        assert told(await upload.verdicts(1)) == ["created"]
        await upload.send(b"")
        assert told(await upload.verdicts(1)) == ["finished"]
        upload.close()


async def test_of_a_client_that_goes_away_whole_batches_are_kept_and_no_part_of_one(
    catalogue: Catalogue, catalog_settings: CatalogSettings, owner: "Connection", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "IDLE_SECONDS", 60.0)
    lines = [line() for _ in range(bulk.BATCH_LINES + 7)]
    async with serving(api.create_app(catalog_settings)) as port:
        upload = await Upload.begun(port, catalogue)
        await upload.send(b"".join(lines))
        await upload.head()
        assert len(await upload.verdicts(bulk.BATCH_LINES)) == bulk.BATCH_LINES
        upload.close()
    # The server has ended: so has the request.
    assert await owner.fetchval("SELECT count(*) FROM catalog.products") == bulk.BATCH_LINES
    assert Counter(told(await send(catalogue, b"".join(lines)))) == {
        **{"unchanged": bulk.BATCH_LINES, "created": 7, "finished": 1}
    }


async def test_a_client_that_reads_nothing_before_it_has_sent_everything_is_answered(
    catalogue: Catalogue, catalog_settings: CatalogSettings
) -> None:
    count, wrong = 30_000, b"{" + b" " * 998 + b"\n"  # 30 MB, and 7 MB of verdicts: both more than sockets hold
    async with serving(api.create_app(catalog_settings)) as port, asyncio.timeout(60):  # instead of for ever
        upload = await Upload.begun(port, catalogue)
        for _ in range(count // 100):
            await upload.send(wrong * 100)
        await upload.send(b"")
        await upload.head()
        found = await upload.verdicts(count + 1)
        assert [verdict["line"] for verdict in found[:-1]] == list(range(1, count + 1))
        assert found[-1] == {"result": "finished", "created": 0, "replaced": 0, "unchanged": 0, "error": count}
        upload.close()


async def test_when_the_database_goes_away_the_end_says_so_and_what_was_told_is_kept(
    catalogue: Catalogue, catalog_settings: CatalogSettings, owner: "Connection"
) -> None:
    async with serving(api.create_app(catalog_settings)) as port:
        upload = await Upload.begun(port, catalogue)
        await upload.send(line())
        await upload.head()
        assert told(await upload.verdicts(1)) == ["created"]
        async with owner.transaction():
            await owner.execute("LOCK TABLE catalog.products")
            await upload.send(line())
            (end,) = await upload.verdicts(1)
        assert (end["result"], end["created"], end["problem"]["code"]) == ("stopped", 1, "unavailable")
        upload.close()
    assert await owner.fetchval("SELECT count(*) FROM catalog.products") == 1


async def test_a_put_under_its_conditions_and_a_bulk_of_the_same_product_agree(catalogue: Catalogue) -> None:
    product_id = new_product_id()
    put, answer = await asyncio.gather(
        catalogue.put(product_id, headers=NEW, price=1), send(catalogue, line(product_id, price=2))
    )
    assert isinstance(put, httpx.Response)
    events = await catalogue.events(product_id)
    assert [event["version"] for event in events] == list(range(1, len(events) + 1))
    assert refused(put) == ("201" if told(answer)[0] == "replaced" else "412 version_mismatch")
