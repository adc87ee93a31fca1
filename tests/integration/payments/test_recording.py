"""Recording how a payment stands: each visible change once, whoever tells it, in whatever order and however often."""

import asyncio
import random
import secrets
from dataclasses import replace
from itertools import pairwise

from services.common import ids
from services.contracts.payments import payment_of
from services.payments import commands
from services.payments.domain import StepState, standing_of
from services.payments.provider import ProviderState, Standing
from services.payments.repository import Claim
from tests.contracts.events import check
from tests.integration.payments.conftest import Books
from tests.order_events import PaidOrder


def standing(claim: Claim, state: ProviderState, captured: int = 0, refunded: int = 0) -> Standing:
    """As a provider would tell it."""
    amount = claim.payment.amount if state in {ProviderState.AUTHORIZED, ProviderState.VOIDED} else 0
    return replace(
        standing_of(claim.payment, state),
        reference="pay_1",
        authorized_amount=amount,
        captured_amount=captured,
        refunded_amount=refunded,
    )


async def authorized(books: Books, order: PaidOrder) -> Claim:
    """The order's payment is; gives the claim it was done with."""
    await books.take(order.placed())
    (claim,) = [one for one in await books.claim() if one.payment.order_id == order.order_id]
    await commands.record(books.database, claim, standing(claim, ProviderState.AUTHORIZED), StepState.DONE)
    return claim


async def test_a_change_is_an_event_with_the_whole_payment_and_ends_the_step(books: Books) -> None:
    order = PaidOrder(total=700)
    await authorized(books, order)
    (row,) = await books.events(order.order_id)
    payment = await books.payment(order.order_id)
    event = {
        "event_id": ids.to_text(row["event_id"]),
        "order_id": order.order_id,
        "version": row["version"],
        "type": row["type"],
        "occurred_at": row["data"]["payment"]["updated_at"],
        "actor": row["actor"],
        "data": row["data"],
    }
    check(event)
    told = payment_of(event)
    assert (told.status, told.authorized_amount, told.reference, told.version) == ("authorized", 700, "pay_1", 1)
    assert (payment["status"], payment["authorized_amount"], payment["version"]) == ("authorized", 700, 1)
    assert row["slice"] == payment["shard"] % ids.SLICES
    step = await books.step(order.order_id)
    assert (step["state"], step["due_at"]) == ("done", None)
    assert step["ended_at"] is not None


async def test_what_is_known_writes_nothing(books: Books) -> None:
    order = PaidOrder()
    claim = await authorized(books, order)
    before = await books.payment(order.order_id)
    for state in (ProviderState.AUTHORIZED, ProviderState.PROCESSING):
        assert await commands.record(books.database, claim, standing(claim, state), StepState.DONE) == []
    assert await books.payment(order.order_id) == before
    assert await books.told(order.order_id) == ["authorized"]


async def test_the_end_of_a_step_makes_the_next_one_due(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed(), order.shipped(400, final=False), order.shipped(600))
    (first,) = await books.claim()
    assert (await books.step(order.order_id, 2))["due_at"] is None
    await commands.record(books.database, first, standing(first, ProviderState.AUTHORIZED), StepState.DONE)
    (second,) = await books.claim()
    assert (second.step.number, second.base_amount, second.payment.status) == (2, 0, "authorized")
    await commands.record(books.database, second, standing(second, ProviderState.AUTHORIZED, 400), StepState.DONE)
    (third,) = await books.claim()
    assert (third.step.number, third.base_amount) == (3, 400)


async def test_a_payment_that_is_processed_keeps_its_reference_and_is_asked_for_again(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed())
    (claim,) = await books.claim()
    await commands.record(books.database, claim, standing(claim, ProviderState.PROCESSING), None, due_in_seconds=0.0)
    assert (await books.payment(order.order_id))["reference"] == "pay_1"
    assert await books.told(order.order_id) == []
    (again,) = await books.claim()
    assert (again.attempt, again.payment.reference) == (2, "pay_1")


async def test_a_refused_step_stays_with_its_reason_and_lets_the_next_one_go_on(books: Books) -> None:
    order = PaidOrder()
    await authorized(books, order)
    await books.take(order.shipped(400, final=False), order.shipped(600))
    (capture,) = await books.claim()
    assert await commands.refuse(books.database, capture, "closed") == []
    step = await books.step(order.order_id, 2)
    assert (step["state"], step["error"]) == ("refused", "closed")
    assert [claim.step.number for claim in await books.claim()] == [3]


async def test_an_authorisation_that_is_refused_has_failed(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed())
    (claim,) = await books.claim()
    await commands.refuse(books.database, claim, "no such method")
    assert await books.told(order.order_id) == ["failed"]
    assert (await books.payment(order.order_id))["failure"] == "no such method"
    await books.take(order.cancelled())
    assert await books.steps(order.order_id) == [(1, "authorize", "refused")], "there is nothing to void"


async def test_a_step_that_another_is_just_claiming_is_passed_over(books: Books) -> None:
    first, second = PaidOrder(), PaidOrder()
    await books.take(first.placed(), second.placed())
    async with books.owner.transaction():
        await books.owner.execute(
            "UPDATE payments.steps SET due_at = now() + interval '30 seconds' WHERE order_id = $1",
            ids.from_text(first.order_id),
        )
        assert [claim.payment.order_id for claim in await books.claim()] == [second.order_id]
    assert await books.claim() == []


async def test_a_step_is_one_runners_until_its_lease_is_over(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed())
    async with asyncio.TaskGroup() as group:
        tries = [group.create_task(books.claim()) for _ in range(8)]
    assert sum(len(one.result()) for one in tries) == 1
    (frozen,) = [claim for one in tries for claim in one.result()]
    await books.owner.execute("UPDATE payments.steps SET due_at = now()")  # as when the lease is over
    (second,) = await books.claim()
    assert second.attempt == frozen.attempt + 1
    due_at = (await books.step(order.order_id))["due_at"]
    await commands.postpone(books.database, frozen, due_in_seconds=0.0, error="thawed")
    await commands.unclaim(books.database, frozen, due_in_seconds=0.0, error="thawed")
    step = await books.step(order.order_id)
    assert (step["due_at"], step["attempts"], step["error"]) == (due_at, 2, None), "another's lease is not shortened"


async def test_whoever_has_not_asked_leaves_a_first_try(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed())
    for _ in range(3):
        (claim,) = await books.claim()
        assert claim.attempt == 1
        await commands.unclaim(books.database, claim, due_in_seconds=0.0, error="left alone")


async def test_a_callback_makes_the_open_step_due_and_no_other(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed(), order.cancelled())
    assert len(await books.claim()) == 1
    assert await books.claim() == []
    assert await commands.hasten(books.database, order.order_id)
    (claim,) = await books.claim()
    assert (claim.step.number, claim.attempt, claim.to_be_voided) == (1, 2, True)
    assert (await books.step(order.order_id, 2))["due_at"] is None
    assert not await commands.hasten(books.database, PaidOrder().order_id)


async def test_a_thousand_races_of_callback_and_poll_make_one_transition_each(books: Books) -> None:
    """Two who have heard of the same change record it at once, and a third one, of before it, comes between."""
    orders = [PaidOrder(total=10) for _ in range(250)]
    dice = random.Random(secrets.randbits(32))
    for at in range(0, len(orders), 50):
        await books.take(*(order.placed() for order in orders[at : at + 50]))
    claims = []
    while found := await books.claim():
        claims += found
    assert len(claims) == len(orders)
    path = [
        (ProviderState.PROCESSING, 0, 0),
        (ProviderState.AUTHORIZED, 0, 0),
        (ProviderState.AUTHORIZED, 4, 0),
        (ProviderState.AUTHORIZED, 10, 0),
        (ProviderState.AUTHORIZED, 10, 3),
    ]

    async def raced(claim: Claim) -> list[str]:
        told: list[str] = []
        for older, newer in pairwise(path):
            heard = [newer, newer, older]
            dice.shuffle(heard)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(commands.record(books.database, claim, standing(claim, *one), StepState.DONE))
                    for one in heard
                ]
            told += [type_ for task in tasks for type_ in task.result()]
        return told

    at_once = asyncio.Semaphore(5)

    async def in_turn(claim: Claim) -> list[str]:
        async with at_once:
            return await raced(claim)

    async with asyncio.TaskGroup() as group:
        races = [group.create_task(in_turn(claim)) for claim in claims]
    wanted = ["payment.authorized", "payment.captured", "payment.captured", "payment.refunded"]
    assert [race.result() for race in races] == [wanted] * len(orders), "1,000 races, one transition each"
    written = await books.owner.fetch(
        "SELECT array_agg(type ORDER BY position) AS types, array_agg(version ORDER BY position) AS versions"
        " FROM payments.outbox GROUP BY aggregate_id"
    )
    assert [(row["types"], row["versions"]) for row in written] == [(wanted, [1, 2, 3, 4])] * len(orders)
