"""How what is behind the stream is: who is told, how often it is asked, and what is said of who does not answer."""

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError

import services.common.breaker
import services.relay.watch  # noqa: F401 # gauges of these two are read
from services.realtime.settings import RealtimeSettings
from services.realtime.status import parsed
from tests.faults.waiting import eventually
from tests.integration.realtime.conftest import Gateway, Open, exporting
from tests.shop import Shop


async def _get(gateway: Gateway, shop: Shop, scope: str | None = "orders:read:any") -> httpx.Response:
    headers = {} if scope is None else shop.auth(scope)
    return await shop.client.get(f"http://127.0.0.1:{gateway.port}/v1/status", headers=headers)


async def _part(gateway: Gateway, shop: Shop) -> dict[str, Any]:
    (part,) = (await _get(gateway, shop)).json()["parts"]
    return dict(part)


async def test_only_who_may_see_all_orders_is_told(gateway: Gateway, shop: Shop) -> None:
    assert (await _get(gateway, shop, None)).status_code == 401
    assert (await _get(gateway, shop, "orders:read")).status_code == 403
    answer = await _get(gateway, shop)
    assert answer.status_code == 200
    assert answer.json()["parts"] == []
    assert answer.headers["Cache-Control"] == "private, no-store"


def _reads(at: str) -> float:
    return REGISTRY.get_sample_value("realtime_status_reads_total", {"at": at, "result": "ok"}) or 0.0


async def test_a_crowd_costs_a_process_one_question(opened: Open, shop: Shop) -> None:
    with exporting("outbox-relay") as relay:
        relay.outboxes("orders", 3, 0.5, 0)
        async with opened(metrics_urls=relay.url) as gateway:
            answers = await asyncio.gather(*(_get(gateway, shop) for _ in range(20)))
            assert _reads(httpx.URL(relay.url).netloc.decode()) == len({answer.json()["as_of"] for answer in answers})
            assert len({answer.content for answer in answers}) < 20


async def test_a_process_that_dies_is_told_as_such_and_so_is_its_return(opened: Open, shop: Shop) -> None:
    with exporting("outbox-relay") as relay:
        relay.outboxes("orders", 3, 0.5, 2)
        at = httpx.URL(relay.url).netloc.decode()
        async with opened(metrics_urls=relay.url) as gateway:
            assert await _part(gateway, shop) == {
                "at": at,
                "answers": True,
                "process": "outbox-relay",
                "outboxes": [{"outbox": "orders", "depth": 3, "oldest_age_seconds": 0.5, "parked_aggregates": 2}],
                "breakers": [],
            }
            relay.close()

            async def silent() -> bool:
                return not await _answers(gateway, shop)

            await eventually(silent, "it does not answer")
            assert await _part(gateway, shop) == {
                "at": at,
                "answers": False,
                "process": None,
                "outboxes": [],
                "breakers": [],
            }
            with exporting("outbox-relay", port=httpx.URL(relay.url).port or 0):
                await eventually(lambda: _answers(gateway, shop), "it answers again")


async def _answers(gateway: Gateway, shop: Shop) -> bool:
    return bool((await _part(gateway, shop))["answers"])


async def test_who_answers_something_else_is_no_process_of_ours(opened: Open, shop: Shop) -> None:
    async with opened() as other, opened(metrics_urls=f"http://127.0.0.1:{other.port}/") as gateway:
        assert not (await _part(gateway, shop))["answers"]


def test_what_relay_and_breakers_export_is_what_is_read() -> None:
    names = {metric.name for metric in REGISTRY.collect()}
    assert {"outbox_depth", "outbox_oldest_age_seconds", "outbox_parked_aggregates", "breaker_state"} <= names
    with pytest.raises(ValueError, match="not the metrics"):
        parsed("there", 'outbox_depth{outbox="orders"} 1\n')


@pytest.mark.parametrize("urls", ["127.0.0.1:9100", "http://a,", "http://a http://b"])
def test_a_wrong_setting_ends_the_process_before_it_serves(urls: str) -> None:
    with pytest.raises(ValidationError):
        RealtimeSettings(metrics_urls=urls)
