"""`orders bench`, quickly: that each row runs, and that its sides do the same work. No figure is judged."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import orjson
import pytest

from loadtests.bench import __main__ as bench
from loadtests.bench import api, database, machine, numbered, pgbench
from loadtests.bench.loaded import ORDER_LINES
from loadtests.bench.measure import Result, VoidError
from loadtests.bench.rows import PROGRAMS, ROWS
from loadtests.bench.stage import BUYER, OURS, POOLS, PRODUCTS, STOCK, UNCACHED, Stage, basket, opened
from loadtests.bench.wrk import CONNECTIONS
from services.common import clock, ids
from services.embedded.supervisor import Stack
from services.orders.queries import LIST_ORDERS
from tests.conftest import with_database

SERVERS = (OURS, UNCACHED, "bare", "idiomatic")


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not in PATH")
    names = {name for row in ROWS.values() for name in row.processes} - {*POOLS}  # more than max_connections
    async with opened(names, orders=bench.QUICK_ORDERS, quick=True) as started:
        yield started


@pytest.fixture
async def connection(stage: Stage) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    connection = await asyncpg.connect(stage.postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stage.token}"}, timeout=30) as client:
        yield client


ROWS_OF = """
SELECT o.status, o.payment_status, o.currency, o.total_amount, o.captured_amount, o.refunded_amount, o.item_count,
       o.adjustments, o.version, o.shard, o.user_id, o.expires_at, o.created_at = o.updated_at AS untouched,
       k.subject, k.version AS key_version, e.version AS event_version, e.type, e.actor, e.data,
       u.slice, u.version AS unpublished,
       (SELECT jsonb_agg(to_jsonb(i) - '{order_id,created_at}'::text[] ORDER BY line_no) FROM orders.order_items i
        WHERE i.order_id = o.order_id AND i.created_at = o.created_at) AS items
FROM orders.idempotency_keys k
JOIN orders.orders o ON o.order_id = k.resource
LEFT JOIN orders.order_events e ON e.order_id = o.order_id
LEFT JOIN orders.outbox u ON u.order_id = o.order_id
WHERE k.key LIKE $1
"""
NAMES_ITS_OWN = {"order_id", "created_at", "updated_at", "product_id"}  # pgbench has numbers for texts


async def _row(connection: "asyncpg.Connection[asyncpg.Record]", sql: str) -> tuple[int, ...]:
    (row,) = await connection.fetch(sql)
    return tuple(row)


def _shared(row: asyncpg.Record, buyer: UUID) -> dict[str, Any]:
    """The row with nothing that names that very order or its buyer, who is asserted to be this one."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stripped(each) for name, each in value.items() if name not in NAMES_ITS_OWN}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    shard = ids.shard_of(buyer)
    items = [{**item, "shard": item["shard"] == shard} for item in orjson.loads(row["items"])]
    content = {name: str(value).replace(str(buyer), "BUYER") for name, value in row.items()}
    places = {"shard": row["shard"] == shard, "slice": row["slice"] == shard % ids.SLICES}
    data = orjson.loads(row["data"].replace(str(buyer), "BUYER"))
    return {**content, **places, "items": items, "data": stripped(data)}


async def test_every_side_that_places_an_order_writes_the_same_rows(
    stage: Stage, client: httpx.AsyncClient, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    reserved = "SELECT (SELECT sum(reserved) FROM orders.inventory), (SELECT count(*) FROM orders.invalidations)"
    written = {}
    for name in SERVERS:
        before = await _row(connection, reserved)
        answer = await client.post(
            f"{stage.url(name)}/v1/orders",
            json={"currency": "USD", "items": basket(0)},
            headers={"Idempotency-Key": f"same/{name}"},
        )
        assert answer.status_code == 201, answer.text
        assert [b - a for a, b in zip(before, await _row(connection, reserved), strict=True)] == [1, 1], name
        written[name] = await connection.fetch(ROWS_OF, f"same/{name}")
    before = await _row(connection, reserved)
    work = await database.placing(stage.role_url, row="alone", product=0).run(0)
    after = await _row(connection, reserved)
    assert [b - a for a, b in zip(before, after, strict=True)] == [work.count, work.count]
    written["pgbench"] = await connection.fetch(ROWS_OF, "alone/%")
    assert {name: len(rows) for name, rows in written.items()} == {**dict.fromkeys(SERVERS, 1), "pgbench": work.count}
    assert "agreed_prices" in written[OURS][0]["data"]
    first = _shared(written[OURS][0], BUYER)
    for name, rows in written.items():
        for row in rows:
            assert _shared(row, database.OTHER_BUYER if name == "pgbench" else BUYER) == first, name


@pytest.mark.parametrize("path", ["", f"?status={api.STATUS}", "/{order_id}"])
async def test_the_usual_way_answers_what_ours_does(stage: Stage, client: httpx.AsyncClient, path: str) -> None:
    order_id = ids.to_text(stage.order(2).order_id)
    ours, usual = [
        (await client.get(f"{stage.url(name)}/v1/orders{path.format(order_id=order_id)}")).raise_for_status().json()
        for name in (UNCACHED, "idiomatic")
    ]
    assert ours.get("data", ours) == usual.get("data", usual)
    assert ours.get("data", ours)


async def test_rows_of_the_api_run_and_are_kept(stage: Stage, tmp_path: Path) -> None:
    found = await _run(stage, tmp_path, "place", "hot", "get", "list", "status", "cached", "304")
    for row in ("place", "hot"):
        written = {one["side"]: one["orders"] for one in found[row].facts["written"]}
        counted = {turn.side: turn.count for turn in found[row].phases}
        assert written.pop("pgbench") == counted.pop("pgbench")
        for side, count in counted.items():  # what was under way when wrk ended is written, but not counted
            assert count <= written[side] <= count + CONNECTIONS, side
    assert set(found["place"].sides) == {*SERVERS, "pgbench"}
    assert len({turn.side for turn in found["cached"].phases}) == 3
    assert all(turn.process_us >= 0 and len(turn.latencies_ms) for one in found.values() for turn in one.phases)


@pytest.mark.usefixtures("stage")  # which asks for wrk
async def test_pools_of_other_sizes_place_orders(tmp_path: Path) -> None:
    async with opened(ROWS["pool"].processes, orders=0, quick=True) as pools:
        found = await _run(pools, tmp_path, "pool")
    assert {*found["pool"].sides} == {OURS, *POOLS}


async def test_rows_of_the_database_run_and_compare_the_same_rows(
    stage: Stage, tmp_path: Path, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    found = await _run(stage, tmp_path, "key", "partitions", "seed", "flatness")
    assert found["key reads"].facts["bytes of a row"].keys() == {"uuid", "char(26)", "text", "bytea"}
    assert {name.partition(" ")[0] for name in found} == {"key", "partitions", "seed", "flatness"}
    assert found["seed"].phases[0].count == found["seed"].phases[1].count
    commands = {name: found[f"flatness {name}"].facts["written"]["100 orders"]["events"] for name in ("cancel", "ship")}
    sizes = found["flatness get"].facts["bytes"]
    assert sizes["100 orders"] > sizes["50 orders"] > 10**6
    of_100 = await stage.connected(with_database(stage.postgres_url, "bench_flat_100"))
    assert await _row(of_100, "SELECT sum(version - 1) FROM orders.orders") == (sum(commands.values()),)
    shipped = await _row(of_100, "SELECT sum(on_hand) FROM orders.inventory")
    assert shipped == (PRODUCTS * STOCK - ORDER_LINES * commands["ship"],)
    for table in ("orders", "order_events"):
        single, parts = f"bench_single_12.{table}", f"bench_months_12.{table}"
        assert len(await connection.fetch(f"TABLE {single}")) == 120
        for one, other in ((single, parts), (parts, single)):
            assert not await connection.fetch(f"TABLE {one} EXCEPT ALL TABLE {other}")


async def _run(stage: Stage, folder: Path, *names: str) -> dict[str, Result]:
    found = await bench.measured(stage, names, bench.QUICK, folder)
    kept = [Result.read(orjson.loads(file.read_bytes())) for file in folder.glob("*.json")]
    assert sorted(kept, key=lambda one: one.name) == sorted(found, key=lambda one: one.name)
    return {one.name: one for one in found}


async def test_sql_and_python_number_things_alike(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    at = clock.now()
    key = numbered.order(123456789012345, at, BUYER)
    sql = numbered.order_sql("$1::bigint", "$2::bigint", "$3::int")
    number, at_ms = 123456789012345, clock.to_ms(at)
    assert await connection.fetchval(f"SELECT {sql}", number, at_ms, key.shard) == key.order_id
    assert await connection.fetchval(f"SELECT {numbered.at_sql('$1::bigint')}", at_ms) == key.created_at
    assert await connection.fetchval(f"SELECT {numbered.thing_sql('product', '$1::int')}", 7) == numbered.thing(
        "product", 7
    )
    assert ids.order_key(key.order_id) == key


async def test_an_answer_with_another_status_voids_the_run(stage: Stage) -> None:
    side = api.getting(stage, UNCACHED, [f"/v1/orders/{ids.to_text(ids.new_id(clock.now()))}"])
    with pytest.raises(VoidError, match="unexpected status 404"):
        await side.run(0)


async def test_a_statement_that_finds_nothing_voids_the_run(stage: Stage) -> None:
    nobody = {
        "user_id": ids.new_id(clock.now()),
        "from_at": "2026-01-01T00:00:00Z",
        "before_at": clock.to_text(clock.now()),
        "before_id": BUYER,
        "limit": 1,
    }
    side = pgbench.reading(stage.role_url, "pgbench", LIST_ORDERS, pgbench.variables(list(nobody)), nobody)
    with pytest.raises(VoidError, match="division by zero"):
        await side.run(0)


async def test_a_server_that_may_forget_is_refused(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(machine.NotDurableError, match="fsync"):
        await machine.facts(stack.addresses.postgres, tmp_path, sync_rate=False)


async def test_the_command_refuses_what_is_no_row() -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("orders")), "bench", "place", "nonsense"),
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == bench.FAILED
    assert "not a row: nonsense" in output


def test_the_list_has_every_row_and_every_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*ROWS, *PROGRAMS]
