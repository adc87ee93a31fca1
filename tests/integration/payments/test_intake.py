"""What events of orders ask for is put on the list of steps: once, in order, and nothing else."""

from collections.abc import Callable

import orjson
import pytest

from services.common.handle import GapError, PoisonError
from services.common.stream import Message
from services.payments import commands
from tests.integration.payments.conftest import Books
from tests.order_events import PaidOrder, new_order_id


async def test_a_paid_order_is_to_be_authorised_at_once_and_one_on_account_is_not(books: Books) -> None:
    paid, on_account = PaidOrder(total=4321), PaidOrder(payment_method=None)
    assert await books.take(paid.placed(), on_account.placed()) == {"applied": 1, "ignored": 1, "stale": 0}
    payment, step = await books.payment(paid.order_id), await books.step(paid.order_id)
    assert (payment["status"], payment["amount"], payment["payment_method"]) == ("requested", 4321, "pm_card")
    assert str(payment["user_id"]) == paid.user_id
    assert (step["kind"], step["amount"], step["state"], step["due"]) == ("authorize", 4321, "open", True)
    assert await books.payment(on_account.order_id) == {}
    assert await books.told(paid.order_id) == []


async def test_each_event_is_a_step_with_its_number_and_waits_for_those_before_it(books: Books) -> None:
    order = PaidOrder()
    await books.take(order.placed(), order.told("delivered", "delivered"), order.shipped(400, final=False))
    await books.take(order.shipped(600), order.returned(1000))
    assert await books.steps(order.order_id) == [
        (1, "authorize", "open"),
        (3, "capture", "open"),
        (4, "capture", "open"),
        (5, "refund", "open"),
    ]
    assert [claim.step.number for claim in await books.claim()] == [1]
    assert [(await books.step(order.order_id, n))["due_at"] for n in (3, 4, 5)] == [None] * 3
    assert [(await books.step(order.order_id, n))["final"] for n in (3, 4)] == [False, True]


async def test_what_comes_again_asks_for_nothing(books: Books) -> None:
    order = PaidOrder()
    messages = [order.placed(), order.shipped(1000)]
    await books.take(*messages)
    assert await books.take(*messages) == {"applied": 0, "ignored": 0, "stale": 2}
    assert len(await books.steps(order.order_id)) == 2


async def test_not_even_when_inbox_and_list_have_forgotten_it(books: Books) -> None:
    order = PaidOrder()
    messages = [order.placed(), order.shipped(1000)]
    await books.take(*messages)
    await books.owner.execute("DELETE FROM payments.inbox")
    await books.owner.execute("DELETE FROM payments.steps")
    assert await books.take(*messages) == {"applied": 0, "ignored": 2, "stale": 0}
    assert await books.steps(order.order_id) == []


async def test_a_gap_is_not_passed_over(books: Books) -> None:
    order = PaidOrder()
    placed, shipped = order.placed(), order.shipped(1000)
    with pytest.raises(GapError):
        await books.take(shipped)
    assert await books.payment(order.order_id) == {}
    assert (await books.take(placed, shipped))["applied"] == 2


async def test_a_payment_of_a_month_without_a_partition_makes_it(books: Books) -> None:
    assert (
        await books.owner.fetchval(
            "SELECT count(*) FROM pg_inherits i WHERE i.inhparent = $1::regclass", "payments.payments"
        )
        == 0
    )
    order = PaidOrder()
    await books.take(order.placed())
    payment = await books.payment(order.order_id)
    table = await books.owner.fetchval(
        "SELECT tableoid::regclass::text FROM payments.payments WHERE order_id = $1", payment["order_id"]
    )
    assert table == f"payments.payments_{payment['created_at']:%Y_%m}"
    assert not await commands.create_month(books.database, payment["created_at"].date())


def without(message: Message, *path: str, value: object = None) -> Message:
    """The message, with something else at that place of its body."""
    body = orjson.loads(message.value)
    node = body
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return Message(message.key, orjson.dumps(body), message.headers)


POISON: dict[str, Callable[[PaidOrder], Message]] = {
    "no JSON": lambda order: Message(order.order_id.encode(), b"{", order.placed().headers),
    "another order": lambda order: without(order.placed(), "order_id", value=new_order_id()),
    "another version": lambda order: without(order.placed(), "version", value=2),
    "another type": lambda order: without(order.placed(), "type", value="order.shipped"),
    "no amount": lambda order: without(order.placed(), "data", "change", "total_amount"),
    "a negative amount": lambda order: order.placed(total_amount=-1),
    "no user": lambda order: order.placed(user_id="me"),
    "a method that cannot be stored": lambda order: order.placed(payment_method="pm\0"),
    "a method that is no text": lambda order: order.placed(payment_method=7),
    "no time": lambda order: without(order.placed(), "occurred_at", value="today"),
    "no change": lambda order: without(order.placed(), "data", value={}),
    "an id that is none of an order": lambda _: PaidOrder(order_id="01JD5Q0000E2WXGF4K4Z7D3M5T").placed(),
}


@pytest.mark.parametrize("what", POISON)
async def test_what_cannot_be_understood_is_poison_and_changes_nothing(books: Books, what: str) -> None:
    good = PaidOrder()
    with pytest.raises(PoisonError):
        await books.take(good.placed(), POISON[what](PaidOrder()))
    assert await books.payment(good.order_id) == {}
    assert await books.owner.fetchval("SELECT count(*) FROM payments.inbox") == 0
