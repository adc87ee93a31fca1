"""`orders demo`: a product, its stock, one real order of it from placing to delivery, another that is paid, and what
others see of the first.
"""

import asyncio
import contextlib
import secrets
import uuid
from datetime import datetime
from typing import Any

import httpx
from rich.console import Console

from services.cli.token import minted
from services.cli.up import prepare, run
from services.cli.watch import events
from services.common import clock, ids, log
from services.common.stream import Received, ensure_topic, reading
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.errors import StackError
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack, stop_on_signals

STEPS = 3  # placed, shipped, delivered
COMES_WITHIN_SECONDS = 15.0  # an event, from its commit to whoever waits for it
LOOK_SECONDS = 0.05

Watched = tuple[dict[str, Any], datetime]  # an event, and when it came

console = Console()


def demo() -> None:
    """Start everything, offer a product, take an order to `delivered` before your eyes, have one paid, stop."""
    log.configure("orders-demo", "WARNING")
    run(_demo(StackSettings()))


async def _demo(settings: StackSettings) -> None:
    with stop_on_signals():
        async with Stack(settings, prepare=prepare) as stack:
            console.print(f"Everything runs: orders at {stack.endpoints['orders']}")
            await ensure_topic(stack.addresses.kafka, ORDERS_TOPIC)
            async with reading(stack.addresses.kafka, ORDERS_TOPIC, from_beginning=True) as messages:
                product = await _offer_a_product(stack)
                order, watched = await _take_an_order(stack, product)
                received = await asyncio.wait_for(_events_of(order["order_id"], messages), COMES_WITHIN_SECONDS)
                await _have_an_order_paid(stack, product)
            _print_timeline(order, received)
            _print_watched(order, watched)
        console.print("Everything has stopped.")


async def _offer_a_product(stack: Stack) -> str:
    """The ULID of a new product of the catalogue, of which orders has stock."""
    desk = minted(stack.settings, sub=str(uuid.uuid4()), scope="catalog:write inventory:write", hours=1)
    product = ids.to_text(ids.new_id(clock.now()))
    body = {"name": "Teapot", "price": 2499, "currency": "USD", "active": True}
    async with httpx.AsyncClient(base_url=str(stack.endpoints["catalog"])) as client:
        _content(await client.put(f"/v1/products/{product}", json=body, headers=_headers(desk)))
    console.print(f"Offered   {product}: {body['name']} at {body['price']} {body['currency']} (minor units)")
    async with (
        httpx.AsyncClient(base_url=str(stack.endpoints["orders"])) as client,
        asyncio.timeout(COMES_WITHIN_SECONDS),
    ):
        stocking, headers = {"delta": 10, "reason": "first delivery"}, _headers(desk)
        path = f"/v1/inventory/{product}/adjustments"
        while (response := await client.post(path, json=stocking, headers=headers)).status_code == 404:
            await asyncio.sleep(LOOK_SECONDS)  # until the catalogue's event has come to orders
    console.print(f"Stocked   {product}: {_content(response)['available']} available")
    return product


async def _take_an_order(stack: Stack, product: str) -> tuple[dict[str, Any], list[Watched]]:
    """The order as delivered, and what its buyer saw of it meanwhile."""
    buyer = minted(stack.settings, sub=str(uuid.uuid4()), scope="orders:read orders:write", hours=1)
    staff = minted(stack.settings, sub=str(uuid.uuid4()), scope="orders:fulfil", hours=1)
    async with httpx.AsyncClient(base_url=str(stack.endpoints["orders"])) as client:
        order = await _post(
            client,
            "/v1/orders",
            buyer,
            {"currency": "USD", "items": [{"product_id": product, "quantity": 2}]},
        )
        console.print(f"Placed    {order['order_id']}: {order['total_amount']} {order['currency']} (minor units)")
        following = asyncio.create_task(_watched(str(stack.endpoints["realtime"]), buyer, order["order_id"]))
        path = f"/v1/orders/{order['order_id']}"
        order = await _post(client, f"{path}/ship", staff, {"tracking": "DEMO-1"}, if_match=order["version"])
        console.print(f"Shipped   {order['order_id']}: tracking {order['tracking']}")
        order = await _post(client, f"{path}/deliver", staff, {}, if_match=order["version"])
        console.print(f"Delivered {order['order_id']}")
        return order, await asyncio.wait_for(following, COMES_WITHIN_SECONDS)


async def _have_an_order_paid(stack: Stack, product: str) -> None:
    """An order with a payment method is confirmed by its authorisation, and captured when it is shipped."""
    token = minted(stack.settings, sub=str(uuid.uuid4()), scope="orders:read orders:write orders:fulfil", hours=1)
    body = {"currency": "USD", "items": [{"product_id": product, "quantity": 1}], "payment_method": "pm_card"}
    async with (
        httpx.AsyncClient(base_url=str(stack.endpoints["orders"])) as client,
        asyncio.timeout(COMES_WITHIN_SECONDS),
    ):
        order = await _post(client, "/v1/orders", token, body)
        order = await _paid(client, token, order, "authorized")
        console.print(f"Paid      {order['order_id']}: {order['total_amount']} {order['currency']} authorized")
        await _post(client, f"/v1/orders/{order['order_id']}/ship", token, {}, if_match=order["version"])
        order = await _paid(client, token, order, "captured")
        console.print(
            f"Captured  {order['order_id']}: {order['captured_amount']} {order['currency']} when it was shipped"
        )


async def _paid(client: httpx.AsyncClient, token: str, order: dict[str, Any], status: str) -> dict[str, Any]:
    """The order as soon as its payment has that status and it is not pending any more."""
    while True:
        path = f"/v1/orders/{order['order_id']}"
        found = _content(await client.get(path, headers={"Authorization": f"Bearer {token}"}))
        if found["payment_status"] == status and found["status"] != "pending":
            return found
        await asyncio.sleep(LOOK_SECONDS)


async def _watched(url: str, token: str, order_id: str) -> list[Watched]:
    """Every event up to the last step, each with the time when it came."""
    found: list[Watched] = []
    async with contextlib.aclosing(events(url, lambda: token, order_id)) as coming:
        async for event in coming:
            found.append((event, clock.now()))
            if len(found) == STEPS:
                break
    return found


async def _post(
    client: httpx.AsyncClient, path: str, token: str, body: dict[str, Any], *, if_match: int | None = None
) -> dict[str, Any]:
    headers = _headers(token)
    if if_match is not None:
        headers["If-Match"] = f'"{if_match}"'
    return _content(await client.post(path, json=body, headers=headers))


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}


def _content(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        told = f"{response.url.path} answered {response.status_code}: {response.text}"
        raise StackError(told, "See the logs in ORDERS_HOME/log.")
    found: dict[str, Any] = response.json()
    return found


async def _events_of(order_id: str, messages: Any) -> list[Received]:
    found: list[Received] = []
    async for message in messages:
        if message.key == order_id.encode():
            found.append(message)
        if len(found) == STEPS:
            break
    return found


def _print_timeline(order: dict[str, Any], received: list[Received]) -> None:
    console.print(f"What Kafka has of {order['order_id']} ({ORDERS_TOPIC}, partition {received[0].partition})")
    for message in received:
        headers = {name: value.decode() for name, value in message.headers.items()}
        console.print(f"  {headers['ce_time']}  {int(headers['ce_sequence'])}  {headers['ce_type']}", highlight=False)


def _print_watched(order: dict[str, Any], watched: list[Watched]) -> None:
    console.print(f"What its buyer saw of {order['order_id']} (WebSocket)")
    for event, came_at in watched:
        after = (came_at - datetime.fromisoformat(event["occurred_at"])).total_seconds()
        console.print(
            f"  v{event['version']} {event['type']}, {after * 1000:.0f} ms after it happened", highlight=False
        )
