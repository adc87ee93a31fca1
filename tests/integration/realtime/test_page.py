"""The page that follows an order, in a real browser."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.faults.waiting import eventually
from tests.integration.realtime.conftest import Gateway, Open, Wire, exporting
from tests.shop import Shop

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MARKUP = "<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Headless, with a profile of its own. Nothing is downloaded."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


class Page:
    """What a person sees. Every look is made in a thread: the gateway runs in this one."""

    def __init__(self, browser: webdriver.Chrome, gateway: Gateway) -> None:
        self._browser = browser
        self.url = f"http://127.0.0.1:{gateway.port}/"

    async def open(self, fragment: str = "") -> None:
        await asyncio.to_thread(self._browser.get, self.url + fragment)

    async def text(self, element: str) -> str:
        return await asyncio.to_thread(lambda: self._browser.find_element(By.ID, element).text)

    async def follow(self, order_id: str, token: str) -> None:
        def typed() -> None:
            for element, what in (("order", order_id), ("token", token)):
                field = self._browser.find_element(By.ID, element)
                field.clear()
                field.send_keys(what)
            self._browser.find_element(By.TAG_NAME, "button").click()

        await asyncio.to_thread(typed)

    async def versions(self) -> list[str]:
        rows = "return [...document.querySelectorAll('#timeline tr')].map((row) => row.cells[0].textContent)"
        found: list[str] = await asyncio.to_thread(self._browser.execute_script, rows)
        return found

    async def parts(self) -> list[list[str]]:
        rows = (
            "return [...document.querySelectorAll('#parts tr')].map("
            "(row) => [...row.cells].map((cell) => cell.textContent))"
        )
        found: list[list[str]] = await asyncio.to_thread(self._browser.execute_script, rows)
        return found

    async def shows(self, what: Callable[[], Any], wanted: Any) -> None:
        async def so() -> bool:
            return bool(wanted == await what())

        await eventually(so, f"the page shows {wanted!r}, it has {await what()!r}", seconds=20)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self._browser.get_log("browser")]  # type: ignore[no-untyped-call]


async def test_the_page_follows_an_order_live_and_after_a_restart(
    browser: webdriver.Chrome, opened: Open, shop: Shop, wire: Wire
) -> None:
    order = await shop.placed((await shop.product(name=MARKUP), 1))
    async with opened() as gateway:
        page, port = Page(browser, gateway), gateway.port
        await page.open()
        await page.follow(order["order_id"].lower(), shop.token("orders:read orders:read:any"))
        await page.shows(page.versions, ["1"])
        await page.shows(lambda: page.text("state"), "Live.")
        assert await page.text("status") == "confirmed"
        order = (await shop.command(order, "ship", {"tracking": MARKUP})).json()
        await wire.publish(order["order_id"], 1, 2)
        await page.shows(page.versions, ["1", "2"])
        await page.shows(lambda: page.text("status"), "shipped")
        assert page.complaints() == [], "its own policy refuses nothing of it"
    await page.shows(lambda: page.text("state"), "Connection lost (1012); trying again.")
    order = (await shop.command(order, "deliver")).json()
    async with opened(port=port):
        await page.shows(page.versions, ["1", "2", "3"])
        await page.shows(lambda: page.text("status"), "delivered")


async def test_the_page_takes_order_and_token_from_behind_the_hash_and_forgets_the_token(
    browser: webdriver.Chrome, gateway: Gateway, shop: Shop
) -> None:
    order = await shop.placed()
    page = Page(browser, gateway)
    await page.open(f"#order={order['order_id']}&token={shop.token('orders:read')}")
    await page.shows(page.versions, ["1"])
    assert await asyncio.to_thread(lambda: browser.current_url) == page.url


async def test_the_page_says_what_is_refused(browser: webdriver.Chrome, gateway: Gateway, shop: Shop) -> None:
    page = Page(browser, gateway)
    await page.open()
    await page.follow("01JD5Q0000E2WXGF4K4Z7D3M5T", shop.token("orders:read"))
    refused = "Refused: not_found. There is no such resource, or it is not yours."
    await page.shows(lambda: page.text("state"), refused)
    await page.follow("01JD5Q0000E2WXGF4K4Z7D3M5T", "x")
    await page.shows(lambda: page.text("state"), "Closed (4401): " + await _reason(gateway))


async def test_the_page_shows_how_far_the_outboxes_are_behind_and_which_breaker_is_open(
    browser: webdriver.Chrome, opened: Open, shop: Shop
) -> None:
    order, token = await shop.placed(), shop.token("orders:read orders:read:any")
    with exporting("outbox-relay") as relay, exporting("payments-worker") as worker:
        relay.outboxes("orders", 7, 2.25, 1)
        worker.breakers(provider=2, other=1)
        urls = f"{relay.url},{worker.url},http://127.0.0.1:1/metrics"
        async with opened(metrics_urls=urls) as gateway:
            page = Page(browser, gateway)
            await page.open(f"#order={order['order_id']}&token={token}")
            await page.shows(
                page.parts,
                [
                    ["outbox-relay", "outbox orders", "7 waiting, oldest 2.25 s, 1 parked"],
                    ["payments-worker", "breaker provider", "open"],
                    ["payments-worker", "breaker other", "half-open"],
                    ["127.0.0.1:1", "metrics", "does not answer"],
                ],
            )
            relay.outboxes("orders", 0, 0.0, 0)
            worker.breakers(provider=0, other=0)
            await page.shows(
                page.parts,
                [
                    ["outbox-relay", "outbox orders", "0 waiting, oldest 0 s, 0 parked"],
                    ["payments-worker", "breaker provider", "closed"],
                    ["payments-worker", "breaker other", "closed"],
                    ["127.0.0.1:1", "metrics", "does not answer"],
                ],
            )
            assert page.complaints() == [], "its own policy refuses nothing of it"


async def test_the_page_says_when_nobody_told_it_whom_to_ask(
    browser: webdriver.Chrome, gateway: Gateway, shop: Shop
) -> None:
    page = Page(browser, gateway)
    await page.open(f"#order={(await shop.placed())['order_id']}&token={shop.token('orders:read orders:read:any')}")
    said = "Not configured: ORDERS_METRICS_URLS of realtime-gateway names no process."
    await page.shows(lambda: page.text("behind"), said)
    assert await page.parts() == []


async def _reason(gateway: Gateway) -> str:
    """What any client with that token is told."""
    client = await gateway.client("x")
    assert await client.closed() == 4401
    return client.socket.close_reason or ""
