"""What payments-worker deletes, and what it never does."""

from services.payments.upkeep import Upkeep
from tests.integration.payments.conftest import Books, OpenRunner
from tests.integration.payments.test_runner import settled
from tests.order_events import PaidOrder


async def test_steps_that_are_done_and_the_inbox_are_deleted_when_they_are_old_and_nothing_else(
    books: Books, open_runner: OpenRunner
) -> None:
    runner = open_runner()
    old, dropped, refused, waiting, young = (PaidOrder() for _ in range(5))
    await settled(books, runner, old.placed())
    await settled(books, runner, dropped.placed(), dropped.cancelled())
    await settled(books, runner, refused.placed(), refused.shipped(refused.total + 1))
    await books.take(waiting.placed())
    await books.owner.execute(
        "UPDATE payments.steps SET ended_at = ended_at - interval '31 days', asked_at = asked_at - interval '31 days'"
    )
    await books.owner.execute("UPDATE payments.inbox SET updated_at = updated_at - interval '31 days'")
    await settled(books, runner, young.placed())
    upkeep = Upkeep(books.database, interval_seconds=3600, steps_kept_days=30, inbox_kept_days=30)
    await upkeep.delete()
    assert await books.steps(old.order_id) == []
    assert await books.steps(dropped.order_id) == []
    assert await books.steps(refused.order_id) == [(2, "capture", "refused")]
    assert len(await books.steps(waiting.order_id)) == 1
    assert await books.steps(young.order_id) == [(1, "authorize", "done")]
    assert await books.owner.fetchval("SELECT array_agg(key) FROM payments.inbox") == [young.order_id]
