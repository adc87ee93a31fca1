"""payments-worker as a process: callbacks, its own death, and that of the provider. It does without Kafka here."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from services.common.signature import sign
from services.embedded.program import answers
from services.payments.callbacks import SIGNATURES
from tests.conftest import UNUSED_KAFKA, AsRole, free_port
from tests.faults.waiting import eventually
from tests.integration.payments.conftest import Books
from tests.order_events import PaidOrder
from tests.sandbox import SECRET, Sandbox, ledger, running_sandbox

NEVER = 600.0  # seconds: no poll comes before a callback does


@dataclass
class Worker:
    """The process, and the sandbox that it asks and is called by."""

    process: asyncio.subprocess.Process
    sandbox: Sandbox
    client: httpx.AsyncClient

    async def call(
        self, order_id: str, *, body: bytes | None = None, signature: str | None = None, provider: str = "sandbox"
    ) -> httpx.Response:
        """A callback about the order, signed as the sandbox does it unless said otherwise."""
        body = orjson.dumps({"order_id": order_id, "state": "authorized"}) if body is None else body
        signed = sign(SECRET.encode(), body, at=int(time.time())) if signature is None else signature
        headers = {"Content-Type": "application/json", SIGNATURES["sandbox"]: signed}
        return await self.client.post(f"/callbacks/{provider}", content=body, headers=headers)

    async def warnings(self) -> list[str]:
        """What is not as it should be."""
        found: list[str] = (await self.client.get("/readyz")).json()["warnings"]
        return found

    async def metric(self, url: str, sample: str) -> float:
        """A sample of its metrics, 0 when there is none."""
        lines = (await self.client.get(url)).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


OpenWorker = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture
async def called(tmp_path: Path) -> AsyncIterator[tuple[Sandbox, int]]:
    """A sandbox that calls a worker at that port."""
    port = free_port()
    async with running_sandbox(tmp_path, f"http://127.0.0.1:{port}/callbacks/sandbox") as sandbox:
        yield sandbox, port


@pytest.fixture
def open_worker(called: tuple[Sandbox, int], as_role: AsRole, valkey_url: str) -> OpenWorker:
    """Call with settings for a worker."""
    sandbox, port = called

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Worker]:
        told = {"step_poll_seconds": 0.05, "retry_seconds_max": NEVER, **settings}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from services.payments.worker import main; main()"),
            env={
                "PATH": os.environ["PATH"],
                "ORDERS_POSTGRES_URL": as_role("payments_worker"),
                "ORDERS_VALKEY_URL": valkey_url,
                "ORDERS_KAFKA_URL": UNUSED_KAFKA,
                "ORDERS_PROVIDER_URL": sandbox.url,
                "ORDERS_CALLBACK_SECRET": SECRET,
                "ORDERS_PORT": str(port),
                "ORDERS_LOG_LEVEL": "ERROR",
                **{f"ORDERS_{name.upper()}": str(value) for name, value in told.items()},
            },
        )
        try:
            async with asyncio.timeout(30):
                while not await answers(port, "/readyz"):
                    assert process.returncode is None, "payments-worker ended"
                    await asyncio.sleep(0.02)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield Worker(process, sandbox, client)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), 60)

    return opened


async def status(books: Books, order: PaidOrder, wanted: str) -> None:
    """The payment comes to have it."""

    async def so() -> bool:
        return bool((await books.payment(order.order_id))["status"] == wanted)

    await eventually(so, f"{order.payment_method} is {wanted}")


async def test_a_callback_tells_what_no_poll_would_have_for_long(open_worker: OpenWorker, books: Books) -> None:
    told = {"pm_late_300": "authorized", "pm_late_declined_300": "failed", "pm_twice": "authorized"}
    orders = [PaidOrder(payment_method=method) for method in told]
    async with open_worker(retry_seconds_min=NEVER, step_lease_seconds=NEVER):
        await books.take(*(order.placed() for order in orders))
        for order in orders:
            await status(books, order, told[order.payment_method or ""])
            assert await books.told(order.order_id) == [told[order.payment_method or ""]]


async def test_what_a_callback_says_is_not_believed(open_worker: OpenWorker, books: Books) -> None:
    order = PaidOrder(payment_method="pm_late_600000")
    async with open_worker(retry_seconds_min=NEVER) as worker:
        await books.take(order.placed())

        async def processing() -> bool:
            return (await books.payment(order.order_id))["reference"] is not None

        await eventually(processing, "it is being processed")
        assert (await worker.call(order.order_id)).status_code == 200

        async def looked_up() -> bool:
            step = await books.step(order.order_id)
            return step["attempts"] == 2 and not step["due"]

        await eventually(looked_up, "the provider was asked for the truth")
    assert (await books.payment(order.order_id))["status"] == "requested"


async def test_a_callback_that_is_not_the_providers_is_refused(open_worker: OpenWorker) -> None:
    order = PaidOrder()
    now = int(time.time())
    body = orjson.dumps({"order_id": order.order_id})
    async with open_worker() as worker:
        for signature in (
            "",
            "t=1,v1=" + "0" * 64,
            sign(b"another secret", body, at=now),
            sign(SECRET.encode(), b"another body", at=now),
            sign(SECRET.encode(), body, at=now - 3600),
        ):
            refused = await worker.call(order.order_id, body=body, signature=signature)
            assert (refused.status_code, refused.json()["code"]) == (401, "unsigned")
        for wrong in (b"{", b"[]", b'{"order": 1}', b'{"order_id": "me"}', b'{"order_id": null}'):
            refused = await worker.call(order.order_id, body=wrong)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid")
        assert (await worker.call(order.order_id, provider="stripe")).status_code == 404
        assert (await worker.call(order.order_id)).status_code == 200, (
            "signed, and of no open step: there is nothing to do"
        )


async def test_without_a_secret_no_callback_is_taken(open_worker: OpenWorker) -> None:
    async with open_worker(callback_secret="") as worker:
        body = orjson.dumps({"order_id": PaidOrder().order_id})
        signature = sign(b"", body, at=int(time.time()))
        assert (await worker.call("", body=body, signature=signature)).status_code == 401
        assert await worker.warnings() == ["there is no callback secret: callbacks are refused, polls tell"]


async def test_a_provider_that_comes_back_is_asked_for_all_that_waited(open_worker: OpenWorker, books: Books) -> None:
    orders = [PaidOrder() for _ in range(10)]
    async with open_worker(
        retry_seconds_min=0.05, retry_seconds_max=0.2, provider_reset_seconds=0.2, metrics_port=(port := free_port())
    ) as worker:
        assert await worker.warnings() == []
        await worker.sandbox.kill()
        await books.take(*(order.placed() for order in orders))

        async def open_() -> bool:
            return await worker.warnings() == ["sandbox does not answer: it is left alone"]

        await eventually(open_, "the breaker opens")
        await worker.sandbox.start()
        for order in orders:
            await status(books, order, "authorized")
        metrics = f"http://127.0.0.1:{port}/metrics"
        tries = 'payment_steps_total{kind="authorize",outcome='
        assert await worker.metric(metrics, f'{tries}"done"}}') == len(orders)
        assert await worker.metric(metrics, f'{tries}"error"}}') >= 5
        assert await worker.metric(metrics, 'payment_provider_seconds_count{call="authorize",outcome="answered"}') > 0
        await eventually(lambda: quiet(worker), "no warning is left")
    payments = await ledger(worker.sandbox.url)
    assert sorted(str(payment["order_id"]) for payment in payments) == sorted(order.order_id for order in orders)


async def quiet(worker: Worker) -> bool:
    """It has nothing to warn of."""
    return await worker.warnings() == []


async def test_a_worker_that_is_killed_while_it_waits_for_the_answer_charges_once(
    open_worker: OpenWorker, books: Books
) -> None:
    order = PaidOrder(payment_method="pm_hang")
    async with open_worker(step_lease_seconds=1.0, callback_secret="") as worker:
        await books.take(order.placed())

        async def held() -> bool:
            return len(await ledger(worker.sandbox.url)) == 1

        await eventually(held, "the money is held")
        worker.process.kill()
        await worker.process.wait()
    assert (await books.payment(order.order_id))["status"] == "requested"
    async with open_worker(callback_secret="") as worker:
        await status(books, order, "authorized")
        assert len(await ledger(worker.sandbox.url)) == 1
