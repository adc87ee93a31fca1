"""A paid order through the whole backend: orders, Kafka, payments-worker, the provider, and back."""

import asyncio
import json
import os
import secrets
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.cli.token import minted
from services.cli.up import any_product, prepare
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.faults.waiting import eventually
from tests.sandbox import ledger

Json = dict[str, Any]


@dataclass
class Backend:
    """All of it, a buyer, and staff."""

    stack: Stack
    client: httpx.AsyncClient
    product: str

    async def post(self, path: str, body: Json, *, seen: Json | None = None) -> Json:
        """What is answered to staff and buyer in one."""
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        if seen is not None:
            headers["If-Match"] = f'"{seen["version"]}"'
        response = await self.client.post(path, json=body, headers=headers)
        assert response.is_success, response.text
        answer: Json = response.json()
        return answer

    async def placed(self, payment_method: str, quantity: int = 3) -> Json:
        """A new order."""
        items = [{"product_id": self.product, "quantity": quantity}]
        return await self.post("/v1/orders", {"currency": "USD", "items": items, "payment_method": payment_method})

    async def becomes(self, order: Json, **members: Any) -> Json:
        """The order as soon as it has these members."""
        found: Json = {}

        async def so() -> bool:
            nonlocal found
            found = (await self.client.get(f"/v1/orders/{order['order_id']}")).json()
            return {name: found[name] for name in members} == members

        await eventually(so, f"{members}", every=0.05)
        return found

    async def command(self, order: Json, name: str, body: Json | None = None) -> Json:
        """The order after a command at its version."""
        return await self.post(f"/v1/orders/{order['order_id']}/{name}", body or {}, seen=order)

    async def events(self, order: Json) -> list[str]:
        """The types of its events."""
        answer = await self.client.get(f"/v1/orders/{order['order_id']}/events")
        return [event["type"].removeprefix("order.") for event in answer.json()["data"]]

    async def orders(self, *arguments: str) -> tuple[int, Any]:
        """Exit code and JSON of the `orders` command on this stack."""
        settings = self.stack.settings
        told = {"ORDERS_HOME": str(settings.home), "ORDERS_PORT_BASE": str(settings.port_base)}
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("orders")), *arguments, "--json"),
            env={"PATH": os.environ["PATH"], **told},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, json.loads(out)

    async def forget(self, order: Json) -> None:
        """The inbox of payments-worker knows nothing of the order any more."""
        owner = await asyncpg.connect(self.stack.addresses.postgres)
        await owner.execute("DELETE FROM payments.inbox WHERE key = $1", order["order_id"])
        await owner.close()

    async def reserved(self) -> int:
        """Of the product."""
        answer = await self.client.get(f"/v1/inventory/{self.product}")
        return int(answer.json()["reserved"])


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    settings = StackSettings(home=tmp_path / "home", port_base=free_port_base())
    async with Stack(settings, prepare=prepare, durable=False) as stack:
        scope = "orders:read orders:write orders:fulfil"
        token = minted(settings, sub=str(uuid.uuid4()), scope=scope, hours=1)
        product = await any_product(stack.addresses.postgres)
        assert product is not None
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=str(stack.endpoints["orders"]), headers=headers, timeout=30) as client:
            yield Backend(stack, client, product)


async def test_orders_are_confirmed_captured_refunded_or_cancelled_as_their_payments_go(backend: Backend) -> None:
    paid = await backend.placed("pm_card")
    assert (paid["status"], paid["payment_status"]) == ("pending", "unpaid")
    declined, late = await backend.placed("pm_declined"), await backend.placed("pm_late_500")
    total = paid["total_amount"]

    paid = await backend.becomes(paid, status="confirmed", payment_status="authorized")
    one = [{"line_no": 1, "quantity": 1}]
    await backend.command(paid, "ship", {"tracking": "P-1", "items": one})
    paid = await backend.becomes(paid, status="partially_shipped", payment_status="partially_captured")
    assert paid["captured_amount"] == total // 3
    await backend.command(paid, "ship", {"tracking": "P-2"})
    paid = await backend.becomes(paid, status="shipped", payment_status="captured", captured_amount=total)
    paid = await backend.command(paid, "deliver")
    await backend.command(paid, "return", {"items": one})
    paid = await backend.becomes(paid, payment_status="partially_refunded", refunded_amount=total // 3)
    # What the worker's inbox has forgotten it asks orders-api for, and does nothing twice.
    await backend.forget(paid)
    await backend.command(paid, "return")
    paid = await backend.becomes(paid, status="returned", payment_status="refunded", refunded_amount=total)
    assert await backend.events(paid) == [
        *("placed", "payment_authorized", "confirmed", "shipped", "payment_captured", "shipped", "payment_captured"),
        *("delivered", "returned", "refunded", "returned", "refunded"),
    ]

    declined = await backend.becomes(declined, status="cancelled", payment_status="failed")
    assert declined["cancel_reason"] == "payment_failed"
    late = await backend.becomes(late, status="confirmed")
    await backend.command(late, "cancel")
    await backend.becomes(late, status="cancelled", payment_status="voided")
    assert await backend.reserved() == 0

    held = {payment["order_id"]: payment for payment in await ledger(str(backend.stack.endpoints["provider"]))}
    assert {order_id: (p["state"], p["captured_amount"], p["refunded_amount"]) for order_id, p in held.items()} == {
        paid["order_id"]: ("authorized", total, total),
        declined["order_id"]: ("declined", 0, 0),
        late["order_id"]: ("voided", 0, 0),
    }

    code, found = await backend.orders("payments", "--reconcile", "--grace-seconds", "0")
    assert (code, found) == (0, {"ok": True, "findings": [], "unchecked": None})
    code, found = await backend.orders("verify")
    assert (code, found["ok"], found["payments"]) == (0, True, {"findings": [], "unchecked": None})
    code, found = await backend.orders("payments", paid["order_id"])
    assert (code, found["payment"]["refunded_amount"]) == (0, total)
    assert [step["kind"] for step in found["steps"]] == ["authorize", "capture", "capture", "refund", "refund"]
    code, found = await backend.orders("payments")
    assert (code, found["payments"]) == (0, {"authorized": 1, "failed": 1, "voided": 1})
