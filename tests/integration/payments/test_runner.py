"""Steps at a real provider: what it has in the end is what was asked for, once, whatever happened on the way."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from services.common.stream import Message
from services.payments.provider import Charge, Standing
from services.payments.runner import Runner
from services.payments.sandbox import SandboxProvider
from services.payments.stripe import StripeProvider
from tests.consuming import metric
from tests.faults.waiting import eventually
from tests.integration.payments.conftest import LEASE_SECONDS, Books, OpenRunner
from tests.integration.payments.test_stripe import intent
from tests.order_events import PaidOrder
from tests.scripted import scripted_server


async def settled(books: Books, runner: Runner, *messages: Message) -> list[str]:
    """The events have been taken and all that was due was tried, until nothing is; gives the outcomes."""
    await books.take(*messages)
    outcomes: list[str] = []
    while claims := await books.claim():
        outcomes += [await runner.settle(claim) for claim in claims]
    return outcomes


async def until_ended(books: Books, runner: Runner, order: PaidOrder) -> list[str]:
    """The same, also of what is due a little later, until no step of the order is open."""
    outcomes: list[str] = []

    async def ended() -> bool:
        outcomes.extend(await settled(books, runner))
        return all(state != "open" for _, _, state in await books.steps(order.order_id))

    await eventually(ended, "no step is open")
    return outcomes


def answers(*calls: str) -> float:
    """How many such questions the provider has answered."""
    return sum(metric("payment_provider_seconds_count", call=call, outcome="answered") for call in calls)


async def at_provider(provider: SandboxProvider, order: PaidOrder) -> Standing | None:
    """How the provider has the payment of the order."""
    charge = Charge(order.order_id, order.total, order.currency, order.payment_method or "")
    return await provider.look_up(charge, None, key="")


async def amounts(books: Books, provider: SandboxProvider, order: PaidOrder) -> tuple[str, int, int, int]:
    """State, authorised, captured, refunded: of the provider, and ours, which are the same."""
    theirs, ours = await at_provider(provider, order), await books.payment(order.order_id)
    assert theirs is not None
    found = (str(theirs.state), theirs.authorized_amount, theirs.captured_amount, theirs.refunded_amount)
    status = {"failed": "declined"}.get(ours["status"], ours["status"])
    assert (status, ours["authorized_amount"], ours["captured_amount"], ours["refunded_amount"]) == found
    assert ours["reference"] == theirs.reference
    return found


async def test_an_order_is_paid_shipped_in_parts_and_refunded(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(total=1000), open_runner()
    assert await settled(books, runner, order.placed()) == ["done"]
    assert await amounts(books, provider, order) == ("authorized", 1000, 0, 0)
    assert await settled(books, runner, order.shipped(400, final=False), order.shipped(600)) == ["done", "done"]
    assert await settled(books, runner, order.returned(250), order.returned(0)) == ["done", "done"]
    assert await amounts(books, provider, order) == ("authorized", 1000, 1000, 250)
    assert await books.told(order.order_id) == ["authorized", "captured", "captured", "refunded"]


async def test_a_declined_payment_fails(books: Books, provider: SandboxProvider, open_runner: OpenRunner) -> None:
    order = PaidOrder(payment_method="pm_declined")
    assert await settled(books, open_runner(), order.placed()) == ["done"]
    assert (await amounts(books, provider, order))[0] == "declined"
    assert await books.told(order.order_id) == ["failed"]
    assert (await books.payment(order.order_id))["failure"]


@pytest.mark.parametrize(("method", "told"), [("pm_late_300", "authorized"), ("pm_late_declined_300", "failed")])
async def test_what_is_settled_late_is_polled_for(
    books: Books, open_runner: OpenRunner, method: str, told: str
) -> None:
    order, runner = PaidOrder(payment_method=method), open_runner()
    await books.take(order.placed())
    (claim,) = await books.claim()
    assert await runner.settle(claim) == "processing"
    assert await books.told(order.order_id) == []
    assert (await until_ended(books, runner, order))[-1] == "done"
    assert await books.told(order.order_id) == [told]


async def test_an_answer_that_is_lost_is_looked_up_at_every_step_and_nothing_is_done_twice(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(total=1000, payment_method="pm_lost_always"), open_runner()
    answered, looked_up = answers("authorize", "capture", "refund"), answers("look_up")
    await books.take(order.placed(), order.shipped(400, final=False), order.shipped(600), order.returned(1000))
    assert await until_ended(books, runner, order) == ["error", "done"] * 4
    assert answers("authorize", "capture", "refund") == answered, "nothing was asked for again"
    assert answers("look_up") == looked_up + 4
    assert await amounts(books, provider, order) == ("authorized", 1000, 1000, 1000)
    assert await books.told(order.order_id) == ["authorized", "captured", "captured", "refunded"]


async def test_a_void_whose_answer_is_lost_is_looked_up(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(payment_method="pm_lost_always"), open_runner()
    await books.take(order.placed())
    assert await until_ended(books, runner, order) == ["error", "done"]
    await books.take(order.cancelled())
    assert await until_ended(books, runner, order) == ["error", "done"]
    assert (await amounts(books, provider, order))[0] == "voided"


async def test_a_provider_that_never_answers_is_looked_up_after_the_deadline(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(payment_method="pm_hang"), open_runner(deadline_seconds=0.5)
    await books.take(order.placed())
    (claim,) = await books.claim()
    assert await runner.settle(claim) == "error"
    assert (await books.step(order.order_id))["error"] == "no answer in time"
    assert await until_ended(books, runner, order) == ["done"]
    assert await amounts(books, provider, order) == ("authorized", 1000, 0, 0)


async def test_a_busy_provider_is_asked_again(books: Books, provider: SandboxProvider, open_runner: OpenRunner) -> None:
    order = PaidOrder(payment_method="pm_busy_3")
    await books.take(order.placed())
    assert await until_ended(books, open_runner(), order) == ["error"] * 3 + ["done"]
    assert await amounts(books, provider, order) == ("authorized", 1000, 0, 0)


async def test_while_the_breaker_is_open_nobody_is_asked_and_no_try_is_counted(
    books: Books, open_runner: OpenRunner
) -> None:
    busy, order = PaidOrder(payment_method="pm_busy_9"), PaidOrder()
    runner = open_runner(failures=1)
    await books.take(busy.placed())
    (claim,) = await books.claim()
    assert await runner.settle(claim) == "error"
    await books.take(order.placed())
    (claim,) = [one for one in await books.claim() if one.payment.order_id == order.order_id]
    assert await runner.settle(claim) == "not_asked"
    step = await books.step(order.order_id)
    assert (step["attempts"], step["due"]) == (0, False)
    assert "left alone" in step["error"]


async def test_an_order_cancelled_before_the_provider_was_asked_never_reaches_it(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order = PaidOrder()
    assert await settled(books, open_runner(), order.placed(), order.cancelled()) == ["dropped", "done"]
    assert await at_provider(provider, order) is None
    assert await books.steps(order.order_id) == [(1, "authorize", "dropped"), (2, "void", "done")]
    assert await books.told(order.order_id) == ["voided"]
    assert (await books.payment(order.order_id))["authorized_amount"] == 0


async def test_an_order_cancelled_while_the_provider_is_asked_is_voided(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(), open_runner()
    await books.take(order.placed())
    (claim,) = await books.claim()
    await books.take(order.cancelled())
    assert await runner.settle(claim) == "done"
    assert await settled(books, runner) == ["done"]
    assert await amounts(books, provider, order) == ("voided", 1000, 0, 0)
    assert await books.told(order.order_id) == ["authorized", "voided"]


async def test_an_order_cancelled_after_it_was_authorised_is_voided(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(), open_runner()
    await settled(books, runner, order.placed())
    assert await settled(books, runner, order.cancelled()) == ["done"]
    assert await amounts(books, provider, order) == ("voided", 1000, 0, 0)


async def test_an_authorisation_that_comes_after_the_order_has_expired_is_voided(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(payment_method="pm_late_400"), open_runner()
    await books.take(order.placed())
    (claim,) = await books.claim()
    assert await runner.settle(claim) == "processing"
    await books.take(order.cancelled())
    await until_ended(books, runner, order)
    assert await amounts(books, provider, order) == ("voided", 1000, 0, 0)
    assert await books.told(order.order_id) == ["authorized", "voided"]


async def test_an_order_of_nothing_is_paid_without_a_provider(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    paid, cancelled, runner = PaidOrder(total=0), PaidOrder(total=0), open_runner()
    assert await settled(books, runner, paid.placed(), paid.shipped(0), paid.returned(0)) == ["done"] * 3
    assert await settled(books, runner, cancelled.placed()) == ["done"]
    assert await settled(books, runner, cancelled.cancelled()) == ["done"]
    for order, told in ((paid, ["authorized"]), (cancelled, ["authorized", "voided"])):
        assert await at_provider(provider, order) is None
        assert await books.told(order.order_id) == told


async def test_what_the_provider_refuses_is_kept_with_its_reason_and_counted(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(), open_runner()
    await settled(books, runner, order.placed())
    held = await at_provider(provider, order)
    assert held is not None
    await provider.void(held, key=f"{order.order_id}:by-hand")
    before = metric("payment_steps_total", kind="capture", outcome="refused")
    assert await settled(books, runner, order.shipped(1000)) == ["refused"]
    assert (await books.step(order.order_id, 2))["error"] == "not_held"
    assert metric("payment_steps_total", kind="capture", outcome="refused") == before + 1
    assert await books.told(order.order_id) == ["authorized"]


async def test_a_runner_that_was_frozen_before_it_asked_does_not_ask_once_its_lease_is_over(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order = PaidOrder()
    await books.take(order.placed())
    (claim,) = await books.claim()
    late = replace(claim, until=claim.until - LEASE_SECONDS - 1)
    assert await open_runner().settle(late) == "error"
    assert await at_provider(provider, order) is None


async def test_a_runner_that_thaws_after_another_has_done_its_step_changes_nothing(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    order, runner = PaidOrder(), open_runner()
    await books.take(order.placed(), order.cancelled())
    await books.owner.execute("UPDATE payments.steps SET attempts = 1 WHERE number = 1")  # so it is not dropped
    (frozen,) = await books.claim()
    await books.owner.execute("UPDATE payments.steps SET due_at = now() WHERE number = 1")  # its lease is over
    assert await settled(books, runner) == ["done", "done"]
    assert await amounts(books, provider, order) == ("voided", 1000, 0, 0)
    assert await runner.settle(frozen) == "done"
    assert await amounts(books, provider, order) == ("voided", 1000, 0, 0)
    assert await books.told(order.order_id) == ["authorized", "voided"]


async def test_two_runners_at_once_do_everything_once(
    books: Books, provider: SandboxProvider, open_runner: OpenRunner
) -> None:
    methods = ["pm_card", "pm_declined", "pm_late_50", "pm_lost_always", "pm_busy_2", "pm_twice"]
    orders = [PaidOrder(total=100 + n, payment_method=methods[n % len(methods)]) for n in range(48)]
    runners = [open_runner() for _ in range(2)]
    running = [asyncio.create_task(runner.run()) for runner in runners]

    async def idle() -> bool:
        return not await books.owner.fetchval("SELECT count(*) FROM payments.steps WHERE state = 'open'")

    try:
        await books.take(*(order.placed() for order in orders))
        await eventually(idle, "all are authorised or declined")
        await books.take(
            *(
                order.cancelled() if n % 2 else order.shipped(order.total)
                for n, order in enumerate(orders)
                if order.payment_method != "pm_declined"
            )
        )
        await eventually(idle, "all are captured or voided")
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    found: dict[str, Any] = {order.order_id: await amounts(books, provider, order) for order in orders}
    for n, order in enumerate(orders):
        if order.payment_method == "pm_declined":
            assert found[order.order_id][0] == "declined"
        else:
            wanted = ("voided", order.total, 0, 0) if n % 2 else ("authorized", order.total, order.total, 0)
            assert found[order.order_id] == wanted
            assert await books.told(order.order_id) == ["authorized", "voided" if n % 2 else "captured"]


async def test_a_capture_that_is_put_off_is_done_and_taken_with_the_final_one(
    books: Books, open_runner: OpenRunner
) -> None:
    """As Stripe does it where a card is charged once: here by a server that answers as its reference says."""
    order = PaidOrder(total=1000)
    made, metadata = intent("requires_payment_method"), {"order_id": order.order_id, "put_off_1": "400"}
    held = intent("requires_capture", multicapture="unavailable")
    async with scripted_server() as stripe:
        provider = StripeProvider("sk_test", url=stripe.url, timeout_seconds=5)
        runner = open_runner(asked=provider)
        stripe.answers += [made, held, held, held]
        assert await settled(books, runner, order.placed(), order.shipped(400, final=False)) == ["done", "put_off"]
        assert await books.told(order.order_id) == ["authorized"]
        noted_held = intent("requires_capture", multicapture="unavailable", metadata=metadata)
        stripe.answers += [noted_held, intent("succeeded", received=1000, capturable=0, metadata=metadata)]
        assert await settled(books, runner, order.shipped(600)) == ["done"]
        assert stripe.asked[-1].told["amount_to_capture"] == "1000"
        await provider.aclose()
    assert await books.told(order.order_id) == ["authorized", "captured"]
    assert (await books.payment(order.order_id))["captured_amount"] == 1000
