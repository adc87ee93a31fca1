"""The runner: takes due steps, asks the provider, and records how the payment stands. Several may run at once.

Nothing is ever asked a second time without looking first, nor under another idempotency key. So whoever dies between
question and record, or is frozen past its lease, leaves work to be done again and never a second charge.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, assert_never

import structlog
from prometheus_client import Counter, Histogram

from services.common.breaker import Breaker, BreakerOpenError
from services.common.db import Database
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.contracts.payments import PaymentEventType
from services.payments import commands
from services.payments.domain import StepKind, StepState, authorization_key, is_done, standing_of
from services.payments.domain import standing_without_asking as without_asking
from services.payments.provider import (
    CapturePutOffError,
    Charge,
    Provider,
    ProviderError,
    ProviderState,
    Standing,
    StepRefusedError,
)
from services.payments.repository import Claim

CLOSED: Final = "closed"  # of a breaker
NOT_ASKED: Final = "not_asked"  # the provider is left alone
PAUSE_SECONDS: Final = 1.0  # while the database is away
PROVIDER_BUCKETS_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)

T = TypeVar("T")
log = structlog.get_logger()
payment_steps_total = Counter("payment_steps_total", "Tries of steps, by what became of them", ["kind", "outcome"])
payment_events_total = Counter("payment_events_total", "Visible changes of payments", ["type"])
payment_provider_seconds = Histogram(
    "payment_provider_seconds",
    "Time of the provider to answer, by what it was asked and how it went",
    ["call", "outcome"],
    buckets=PROVIDER_BUCKETS_SECONDS,
)


class Runner:
    """Settles due steps at `provider`, `at_once` of as many orders at a time. `published` is called after events."""

    def __init__(
        self,
        database: Database,
        provider: Provider,
        breaker: Breaker,
        *,
        published: Callable[[], None],
        at_once: int,
        lease_seconds: float,
        poll_seconds: float,
        retry_seconds_min: float,
        retry_seconds_max: float,
    ) -> None:
        self._database = database
        self._provider = provider
        self._breaker = breaker
        self._published = published
        self._at_once = at_once
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._retry_seconds = (retry_seconds_min, retry_seconds_max)
        self._wanted = asyncio.Event()
        self._under_way = 0

    def wake(self) -> None:
        """There may be something due."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled. What is then under way is left to whoever claims it when its lease is over."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wanted.clear()
                for claim in await self._claimed():
                    self._under_way += 1
                    group.create_task(self._one(claim))
                try:
                    async with asyncio.timeout(self._poll_seconds):
                        await self._wanted.wait()
                except TimeoutError:
                    continue

    async def _claimed(self) -> list[Claim]:
        # While the provider is left alone one step at a time tries whether it is back; the others stay as they are.
        free = (self._at_once if self._breaker.state == CLOSED else 1) - self._under_way
        if free < 1:
            return []
        try:
            return await commands.claim(self._database, limit=free, lease_seconds=self._lease_seconds)
        except (TransientError, LockTimeoutError, DomainError) as error:
            log.warning("payments.not_claimed", error=repr(error))
            await asyncio.sleep(PAUSE_SECONDS)
            return []

    async def _one(self, claim: Claim) -> None:
        outcome = ""
        try:
            outcome = await self.settle(claim)
        finally:
            self._under_way -= 1
            if outcome != NOT_ASKED:
                self.wake()  # a slot is free, and the next step of the order may be due

    async def settle(self, claim: Claim) -> str:
        """The step has been tried once, and what came of it is recorded; gives the outcome, as metrics have it."""
        try:
            outcome = await self._settled(claim)
        except (TransientError, LockTimeoutError, DomainError) as error:
            outcome = "unrecorded"  # when the lease is over it is looked up
            log.warning("payments.unrecorded", **_told(claim), error=repr(error))
        except Exception:  # whatever it is, other orders' payments go on
            outcome = "broken"
            log.exception("payments.step_broken", **_told(claim))
        payment_steps_total.labels(claim.step.kind.value, outcome).inc()
        return outcome

    async def _settled(self, claim: Claim) -> str:
        again = self._again(claim)
        try:
            standing = without_asking(claim.payment, claim.step, cancelled=claim.to_be_voided and claim.attempt == 1)
            asked = standing is None
            if standing is None:
                standing = await self._ask(claim)
        except BreakerOpenError as error:
            due = max(again, error.retry_after)
            await commands.unclaim(self._database, claim, due_in_seconds=due, error=str(error))
            return NOT_ASKED
        except ProviderError as error:
            log.warning("payments.provider_error", **_told(claim), attempt=claim.attempt, error=str(error))
            await commands.postpone(self._database, claim, due_in_seconds=again, error=str(error) or repr(error))
            return "error"
        except CapturePutOffError:
            await commands.record(self._database, claim, standing_of(claim.payment), StepState.DONE)
            return "put_off"
        except StepRefusedError as error:
            log.error("payments.step_refused", **_told(claim), reason=error.reason)
            self._told(await commands.refuse(self._database, claim, error.reason))
            return "refused"
        if asked and not is_done(claim.step, standing, claim.base_amount):
            self._told(await commands.record(self._database, claim, standing, None, due_in_seconds=again))
            return "processing"
        dropped = claim.step.kind is StepKind.AUTHORIZE and not asked and standing.state is ProviderState.VOIDED
        end = StepState.DROPPED if dropped else StepState.DONE
        self._told(await commands.record(self._database, claim, standing, end))
        return end.value

    async def _ask(self, claim: Claim) -> Standing:
        """The provider's answer; that of a look-up, when it shows that the step need not be asked for again."""
        payment, step, provider = claim.payment, claim.step, self._provider
        charge = Charge(payment.order_id, payment.amount, payment.currency, payment.payment_method)
        key = step.key(payment.order_id)
        standing = standing_of(payment)
        if claim.attempt > 1:
            first = authorization_key(payment.order_id)
            found = await self._call(claim, "look_up", lambda: provider.look_up(charge, payment.reference, key=first))
            if found is not None and (
                found.state is ProviderState.PROCESSING or is_done(step, found, claim.base_amount)
            ):
                return found
            if found is None and step.kind is not StepKind.AUTHORIZE:
                raise ProviderError("the provider has no payment of this order")
            standing = found or standing
        match step.kind:
            case StepKind.AUTHORIZE:
                answer = await self._call(claim, "authorize", lambda: provider.authorize(charge, key=key))
            case StepKind.CAPTURE:
                answer = await self._call(
                    claim, "capture", lambda: provider.capture(standing, step.amount, final=step.final, key=key)
                )
            case StepKind.VOID:
                answer = await self._call(claim, "void", lambda: provider.void(standing, key=key))
            case StepKind.REFUND:
                answer = await self._call(claim, "refund", lambda: provider.refund(standing, step.amount, key=key))
            case _:
                assert_never(step.kind)
        return answer

    async def _call(self, claim: Claim, call: str, ask: Callable[[], Awaitable[T]]) -> T:
        """What the provider answers. ProviderError when it does not, or when the lease is over before it is asked."""
        if time.monotonic() > claim.until:
            raise ProviderError("the lease was over before the provider was asked")
        started, outcome = time.perf_counter(), "error"
        try:
            answer = await self._breaker.call(ask)
            outcome = "answered"
        except TimeoutError as error:
            outcome = "timeout"
            raise ProviderError("no answer in time") from error
        except StepRefusedError:
            outcome = "refused"
            raise
        except CapturePutOffError:
            outcome = "answered"
            raise
        except BreakerOpenError:
            outcome = NOT_ASKED
            raise
        finally:
            payment_provider_seconds.labels(call, outcome).observe(time.perf_counter() - started)
        if isinstance(answer, Standing) and (answer.order_id, answer.currency) != (
            claim.payment.order_id,
            claim.payment.currency,
        ):
            raise ProviderError(f"the answer is of {answer.order_id} in {answer.currency}")
        return answer

    def _again(self, claim: Claim) -> float:
        """Seconds until the next try: doubling, and spread so that what failed together does not come together."""
        shortest, longest = self._retry_seconds
        doubled = shortest * 2.0 ** min(claim.attempt - 1, 20)
        return min(longest, doubled) * random.uniform(0.8, 1.2)  # noqa: S311 # no secret

    def _told(self, events: list[PaymentEventType]) -> None:
        for type_ in events:
            payment_events_total.labels(type_.value).inc()
        if events:
            self._published()


def _told(claim: Claim) -> dict[str, object]:
    return {"order_id": claim.payment.order_id, "step": claim.step.number, "kind": claim.step.kind.value}
