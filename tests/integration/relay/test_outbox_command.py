"""`orders outbox`: what waits, who carries it, what is parked, and its release."""

import asyncio
import os
import subprocess
import sys
from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest

from services.common import ids
from services.relay.settings import RelaySettings
from tests.faults.waiting import eventually
from tests.integration.relay.conftest import Topic, metric, relaying
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
COMMAND = "import typer; from services.cli.outbox import outbox; typer.run(outbox)"


async def _run(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "ORDERS_POSTGRES_URL": url, "COLUMNS": "200"}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )


async def _told(url: str, *arguments: str) -> Any:
    ran = await _run(url, "--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    return orjson.loads(ran.stdout)


async def test_it_tells_what_waits_and_which_relay_has_how_many_slices(
    shop: Shop, settings: RelaySettings, database_url: str
) -> None:
    order = await shop.placed()
    orders, catalog, payments, *invalidations = await _told(database_url)
    assert (orders["outbox"], orders["waiting"], orders["parked"], orders["relays"]) == ("orders", 1, 0, {})
    assert orders["oldest_at"] == order["created_at"]
    assert (catalog["outbox"], catalog["waiting"], catalog["oldest_at"]) == ("catalog", 0, None)
    assert (payments["outbox"], payments["waiting"], payments["oldest_at"]) == ("payments", 0, None)
    waiting = [(one["outbox"], one["waiting"]) for one in invalidations]
    assert waiting == [("orders.invalidations", 1), ("customers.invalidations", 0), ("catalog.invalidations", 0)]
    async with relaying(settings):

        async def carried() -> bool:
            return metric("outbox_slices", outbox="orders") == 16

        await eventually(carried, "all slices")
        orders, catalog, *_ = await _told(database_url)
        assert list(orders["relays"].values()) == [16]
        assert catalog["relays"] == {}
        shown = (await _run(database_url)).stdout
        assert next(iter(orders["relays"])) in shown


async def test_a_poisoned_row_is_listed_with_what_waits_for_it_and_goes_out_once_mended_and_released(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner, database_url: str
) -> None:
    order = await shop.placed()
    key = ids.order_key(ids.from_text(order["order_id"]))
    # As if the event had been lost: it comes back later.
    await owner.execute("UPDATE orders.outbox SET created_at = created_at - INTERVAL '1 ms'")
    assert (await shop.command(order, "ship")).status_code == 200
    async with relaying(settings):

        async def both() -> bool:
            return bool(await owner.fetchval("SELECT count(*) = 2 FROM relay.parked"))

        await eventually(both, "both are parked")
        (found,) = await _told(database_url, "--parked")
        assert found.pop("parked_at")
        assert found == {
            "outbox": "orders",
            "aggregate_id": order["order_id"],
            "version": 1,
            "reason": "there is no such event",
            "waiting": 1,
        }
        shown = (await _run(database_url, "--parked")).stdout
        assert order["order_id"] in shown
        assert "there is no such event" in shown
        await owner.execute(
            "UPDATE relay.parked SET content = content || jsonb_build_object('created_at', $1::timestamptz)",
            key.created_at,
        )
        ran = await _run(database_url, "--release", order["order_id"].lower())
        assert (ran.returncode, ran.stdout) == (0, "orders: versions 1, 2 are in the outbox again.\n")
        await topic.of(order["order_id"], 2)
        assert topic.versions(order["order_id"]) == [1, 2]
    assert await _told(database_url, "--parked") == []


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [("01M82KK0WWF41TJXZ2DBW4J42G", 1, "Nothing is parked under"), ("nonsense", 2, "is no id of an order")],
)
async def test_a_release_of_nothing_says_so(database_url: str, text: str, code: int, said: str) -> None:
    ran = await _run(database_url, "--release", text)
    assert ran.returncode == code
    assert said in ran.stderr
