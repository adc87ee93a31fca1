"""The payments sandbox through its adapter, as payments-worker meets it."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import httpx
import pytest

from services.payments.provider import Charge, ProviderError, ProviderState, Standing, StepRefusedError
from services.payments.sandbox import SandboxProvider
from tests.faults.waiting import eventually
from tests.sandbox import Called, Sandbox, ledger, running_sandbox, somebody_called

_orders = (f"01JD5Q0000E2WXGF4K4Z7{number:05}" for number in count())
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def charge(payment_method: str = "pm_card", amount: int = 6497) -> Charge:
    return Charge(next(_orders), amount, "USD", payment_method)


def key(of: Charge | Standing, step: str = "authorize", number: int = 1) -> str:
    return f"{of.order_id}:{number}:{step}"


@pytest.fixture(scope="module")
async def called() -> AsyncIterator[Called]:
    async with somebody_called() as called:
        yield called


@pytest.fixture(scope="module")
async def sandbox(tmp_path_factory: pytest.TempPathFactory, called: Called) -> AsyncIterator[Sandbox]:
    async with running_sandbox(tmp_path_factory.mktemp("sandbox"), called.url) as sandbox:
        yield sandbox


@pytest.fixture
async def provider(sandbox: Sandbox) -> AsyncIterator[SandboxProvider]:
    provider = SandboxProvider(sandbox.url, timeout_seconds=10)
    yield provider
    await provider.aclose()


async def test_a_payment_is_held_then_taken_in_parts_then_given_back_in_parts(provider: SandboxProvider) -> None:
    asked = charge()
    held = await provider.authorize(asked, key=key(asked))
    assert held == Standing(asked.order_id, held.reference, ProviderState.AUTHORIZED, "USD", 6497, 0, 0)
    first = await provider.capture(held, 2000, final=False, key=key(held, "capture", 2))
    assert first == replace(held, captured_amount=2000)
    with pytest.raises(StepRefusedError, match="captured"):
        await provider.void(first, key=key(held, "void", 9))
    last = await provider.capture(first, 4000, final=True, key=key(held, "capture", 3))
    assert last == replace(held, captured_amount=6000)
    with pytest.raises(StepRefusedError, match="not_held"):  # the rest was released
        await provider.capture(last, 1, final=True, key=key(held, "capture", 4))
    back = await provider.refund(last, 1500, key=key(held, "refund", 5))
    assert back == replace(last, refunded_amount=1500)
    with pytest.raises(StepRefusedError, match="amount_too_large"):
        await provider.refund(back, 4501, key=key(held, "refund", 6))
    assert await provider.refund(back, 4500, key=key(held, "refund", 7)) == replace(last, refunded_amount=6000)


async def test_what_is_held_is_released_and_cannot_be_taken_any_more(provider: SandboxProvider) -> None:
    asked = charge()
    held = await provider.authorize(asked, key=key(asked))
    voided = await provider.void(held, key=key(held, "void", 2))
    assert voided == replace(held, state=ProviderState.VOIDED)
    assert await provider.void(held, key=key(held, "void", 3)) == voided
    with pytest.raises(StepRefusedError, match="not_held"):
        await provider.capture(held, 1, final=False, key=key(held, "capture", 4))


async def test_a_declined_payment_is_a_standing_and_no_error(provider: SandboxProvider) -> None:
    asked = charge("pm_declined")
    declined = await provider.authorize(asked, key=key(asked))
    assert declined.state is ProviderState.DECLINED
    assert (declined.authorized_amount, declined.failure) == (0, "card_declined")
    with pytest.raises(StepRefusedError, match="not_held"):
        await provider.capture(declined, 1, final=False, key=key(asked, "capture", 2))


async def test_the_same_key_does_nothing_twice_and_something_else_under_it_is_refused(
    provider: SandboxProvider, sandbox: Sandbox
) -> None:
    asked = charge()
    held = await asyncio.gather(*(provider.authorize(asked, key=key(asked)) for _ in range(20)))
    assert len(set(held)) == 1
    taken = await asyncio.gather(
        *(provider.capture(held[0], 100, final=False, key=key(asked, "capture", 2)) for _ in range(20))
    )
    assert set(taken) == {replace(held[0], captured_amount=100)}
    with pytest.raises(StepRefusedError, match="key_reused"):
        await provider.authorize(replace(asked, amount=1), key=key(asked))
    with pytest.raises(StepRefusedError, match="key_reused"):
        await provider.refund(taken[0], 100, key=key(asked, "capture", 2))
    async with httpx.AsyncClient(base_url=sandbox.url, timeout=30) as http:
        of_order = (await http.get("/v1/payments", params={"order_id": asked.order_id})).json()["data"]
    assert [(one["captured_amount"], one["refunded_amount"]) for one in of_order] == [(100, 0)]


async def test_a_payment_is_found_by_its_order_or_reference(provider: SandboxProvider) -> None:
    asked = charge()
    assert await provider.look_up(asked, None, key=key(asked)) is None
    held = await provider.authorize(asked, key=key(asked))
    taken = await provider.capture(held, 5, final=False, key=key(asked, "capture", 2))
    assert await provider.look_up(asked, None, key=key(asked)) == taken
    assert await provider.look_up(asked, held.reference, key=key(asked)) == taken
    with pytest.raises(StepRefusedError, match="not_found"):
        await provider.look_up(asked, "pay_unknown", key=key(asked))


async def test_every_payment_changed_since_is_listed_page_by_page(sandbox: Sandbox) -> None:
    provider = SandboxProvider(sandbox.url, timeout_seconds=10, page=2)
    changed = [charge(amount=number) for number in range(1, 8)]
    made = await asyncio.gather(*(provider.authorize(one, key=key(one)) for one in changed))
    listed = [one async for one in provider.standings(SINCE)]
    assert Counter(one.reference for one in listed).most_common(1)[0][1] == 1
    assert set(made) <= set(listed)
    assert [one async for one in provider.standings(datetime.now(UTC) + timedelta(seconds=60))] == []
    await provider.aclose()


@pytest.mark.parametrize(("method", "state"), [("pm_late_40", "authorized"), ("pm_late_declined_40", "declined")])
async def test_a_late_payment_is_processed_first_and_a_callback_tells_the_end(
    provider: SandboxProvider, called: Called, method: str, state: str
) -> None:
    asked = charge(method)
    processed = await provider.authorize(asked, key=key(asked))
    assert processed.state is ProviderState.PROCESSING
    told = (await called.told(asked.order_id))[0]
    assert told["type"] == "payment.changed"
    standing = await provider.look_up(asked, None, key=key(asked))
    assert standing is not None
    assert standing.state == told["payment"]["state"] == state
    assert standing.authorized_amount == (asked.amount if state == "authorized" else 0)
    assert await provider.authorize(asked, key=key(asked)) == processed, "the same answer, as it was"


async def test_an_answer_that_is_cut_off_has_held_the_money_all_the_same(provider: SandboxProvider) -> None:
    asked = charge("pm_lost")
    with pytest.raises(ProviderError, match="no answer"):
        await provider.authorize(asked, key=key(asked))
    standing = await provider.look_up(asked, None, key=key(asked))
    assert standing is not None
    assert standing.authorized_amount == asked.amount
    assert await provider.authorize(asked, key=key(asked)) == standing


async def test_an_answer_that_never_comes_has_held_the_money_all_the_same(
    provider: SandboxProvider, sandbox: Sandbox
) -> None:
    asked = charge("pm_hang")
    asking = asyncio.create_task(provider.authorize(asked, key=key(asked)))
    standing = await eventually(lambda: provider.look_up(asked, None, key=key(asked)), "the money is held")
    assert standing is not None
    assert standing.authorized_amount == asked.amount
    assert await provider.authorize(asked, key=key(asked)) == standing, "only the first request is left hanging"
    assert not asking.done()
    asking.cancel()
    impatient, asked = SandboxProvider(sandbox.url, timeout_seconds=0.05), charge("pm_hang")
    with pytest.raises(ProviderError, match="no answer"):
        await impatient.authorize(asked, key=key(asked))
    await impatient.aclose()


async def test_every_step_may_lose_its_first_answer(provider: SandboxProvider) -> None:
    asked = charge("pm_lost_always")
    with pytest.raises(ProviderError):
        await provider.authorize(asked, key=key(asked))
    held = await provider.authorize(asked, key=key(asked))
    for number, expected in ((2, replace(held, captured_amount=7)), (3, replace(held, captured_amount=14))):
        with pytest.raises(ProviderError):
            await provider.capture(held, 7, final=False, key=key(asked, "capture", number))
        assert await provider.look_up(asked, held.reference, key=key(asked)) == expected
        assert await provider.capture(held, 7, final=False, key=key(asked, "capture", number)) == expected


async def test_a_busy_provider_has_done_nothing(provider: SandboxProvider) -> None:
    asked = charge("pm_busy_2")
    for _ in range(2):
        with pytest.raises(ProviderError, match="503"):
            await provider.authorize(asked, key=key(asked))
        assert await provider.look_up(asked, None, key=key(asked)) is None
    assert (await provider.authorize(asked, key=key(asked))).state is ProviderState.AUTHORIZED


async def test_each_change_may_be_told_twice_at_once(provider: SandboxProvider, called: Called) -> None:
    asked = charge("pm_twice")
    held = await provider.authorize(asked, key=key(asked))
    told = await called.told(asked.order_id, times=2)
    assert [one["payment"]["captured_amount"] for one in told[:2]] == [0, 0]
    await provider.capture(held, 1, final=False, key=key(held, "capture", 2))
    told = await called.told(asked.order_id, times=4)
    assert [one["payment"]["captured_amount"] for one in told[-2:]] == [1, 1]


async def test_a_callback_is_sent_until_it_is_taken_also_after_the_sandbox_was_killed(tmp_path: Path) -> None:
    async with somebody_called() as called, running_sandbox(tmp_path, called.url) as sandbox:
        called.status = 503
        provider = SandboxProvider(sandbox.url, timeout_seconds=10)
        asked = charge("pm_late_10")
        await provider.authorize(asked, key=key(asked))
        await called.until_refused(3)
        await sandbox.kill()
        called.status = 204
        await sandbox.start()
        assert (await called.told(asked.order_id))[0]["payment"]["state"] == "authorized"
        await provider.aclose()


async def test_what_was_being_processed_when_it_was_killed_settles_afterwards(tmp_path: Path) -> None:
    async with somebody_called() as called, running_sandbox(tmp_path, called.url) as sandbox:
        provider = SandboxProvider(sandbox.url, timeout_seconds=10)
        asked = charge("pm_late_declined_300")
        assert (await provider.authorize(asked, key=key(asked))).state is ProviderState.PROCESSING
        await sandbox.kill()
        await sandbox.start()
        await called.told(asked.order_id)
        standing = await provider.look_up(asked, None, key=key(asked))
        assert standing is not None
        assert standing.state is ProviderState.DECLINED
        await provider.aclose()


async def test_killed_in_the_middle_of_authorisations_it_never_charges_twice(tmp_path: Path) -> None:
    """Buyers ask until they are answered while the sandbox is killed again and again: what was answered is kept."""
    async with running_sandbox(tmp_path) as sandbox:
        provider = SandboxProvider(sandbox.url, timeout_seconds=5)
        answered: dict[str, Standing] = {}
        unanswered: Counter[str] = Counter()

        async def pay(asked: Charge) -> None:
            while asked.order_id not in answered:
                try:
                    held = await provider.authorize(asked, key=key(asked))
                    answered[asked.order_id] = await provider.capture(
                        held, 1, final=False, key=key(asked, "capture", 2)
                    )
                except ProviderError:
                    unanswered[asked.order_id] += 1
                    await asyncio.sleep(0.01)

        async def buyer() -> None:
            for _ in range(15):
                await pay(charge())

        buyers = [asyncio.create_task(buyer()) for _ in range(8)]
        async with asyncio.timeout(120):
            for kills in range(1, 4):
                while len(answered) < kills * 30:  # in the middle of all, wherever each buyer is
                    await asyncio.sleep(0.001)
                await sandbox.kill()
                await sandbox.start()
            await asyncio.gather(*buyers)
        payments = await ledger(sandbox.url)
        assert len(answered) == 120
        assert unanswered, "the kills hit nobody"
        assert Counter(str(one["order_id"]) for one in payments) == Counter(list(answered))
        assert {str(one["order_id"]): one["captured_amount"] for one in payments} == dict.fromkeys(answered, 1)
        assert {one["reference"] for one in payments} == {one.reference for one in answered.values()}
        await provider.aclose()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        ("/v1/payments", b"{}", {}, 400, "key_missing"),
        ("/v1/payments", b"{}", {"Idempotency-Key": "k" * 256}, 400, "key_missing"),
        ("/v1/payments", b"{", {"Idempotency-Key": "k"}, 422, "invalid"),
        ("/v1/payments", b'{"order_id": "o"}', {"Idempotency-Key": "k"}, 422, "invalid"),
        ("/v1/payments", b" " * 9000, {"Idempotency-Key": "k"}, 413, "body_too_large"),
        ("/v1/payments/pay_x/capture", b'{"amount": 1, "final": true}', {"Idempotency-Key": "k"}, 404, "not_found"),
        ("/v1/payments/pay_x/steal", b"{}", {"Idempotency-Key": "k"}, 404, "not_found"),
    ],
)
async def test_bad_input_is_told_and_changes_nothing(
    sandbox: Sandbox, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    before = await ledger(sandbox.url)
    async with httpx.AsyncClient(base_url=sandbox.url, timeout=30) as http:
        answer = await http.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert await ledger(sandbox.url) == before


@pytest.mark.parametrize(
    "query",
    [
        "",
        "changed_since=now",
        "changed_since=2026-01-01T00:00:00",
        "cursor=1.pay_1",
        "limit=0&changed_since=2026-01-01T00:00:00Z",
    ],
)
async def test_a_listing_needs_to_know_since_when(sandbox: Sandbox, query: str) -> None:
    async with httpx.AsyncClient(base_url=sandbox.url, timeout=30) as http:
        answer = await http.get(f"/v1/payments?{query}")
    assert answer.json()["code"] == ("bad_cursor" if "cursor" in query else "invalid")


def test_the_ledger_itself_refuses_more_than_is_there(tmp_path: Path) -> None:
    from services.embedded.ledger import Ledger

    Ledger(tmp_path / "ledger.sqlite3", callbacks=False).close()
    database = sqlite3.connect(tmp_path / "ledger.sqlite3")
    insert: Callable[..., object] = lambda *amounts: database.execute(  # noqa: E731
        "INSERT INTO payments VALUES ('r', 'o', 'pm', 'USD', 100, 'authorized', ?, ?, ?, 0, NULL, NULL, 0, 0)", amounts
    )
    for amounts in ((101, 0, 0), (100, 101, 0), (100, 50, 51), (0, 1, 0), (100, -1, -1)):
        with pytest.raises(sqlite3.IntegrityError):
            insert(*amounts)
    insert(100, 100, 100)
    database.close()
