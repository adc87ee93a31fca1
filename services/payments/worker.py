"""Process `payments-worker`: has orders' payments authorised, captured, voided and refunded, and takes callbacks."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from services.common.auth import TokenVerifier
from services.common.breaker import Breaker, degraded
from services.common.consumer import Consumer
from services.common.db import Database
from services.common.events_api import EventsApi
from services.common.http import Application, build_app
from services.common.outbox import Wake
from services.common.server import serve
from services.common.service_token import ServiceToken
from services.contracts.envelope import ORDERS_SOURCE, ORDERS_TOPIC
from services.payments.endpoints import Context
from services.payments.intake import CONSUMER, Intake
from services.payments.provider import CapturePutOffError, StepRefusedError
from services.payments.providers import opened
from services.payments.routes import ROUTES
from services.payments.runner import Runner
from services.payments.settings import PaymentsSettings
from services.payments.upkeep import Upkeep

PROCESS = CONSUMER

log = structlog.get_logger()


def create_app(settings: PaymentsSettings, topic: str = ORDERS_TOPIC) -> Application:
    """The application; its lifespan consumes `topic`, and runs the steps."""
    verifier = TokenVerifier(settings.issuer_url, settings.audience)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Connections are made when they are first wanted: the database may be away at the start.
        database = Database(
            settings.postgres_url, application_name=PROCESS, size_min=0, size_max=settings.pool_size, name="primary"
        )
        await database.open()
        provider = opened(
            settings.payment_provider,
            url=settings.provider_url,
            timeout_seconds=settings.provider_deadline_seconds,
            stripe_key=settings.stripe_key.get_secret_value(),
            stripe_url=settings.stripe_url,
        )
        breaker = Breaker(
            provider.name,
            deadline_seconds=settings.provider_deadline_seconds,
            reset_seconds=settings.provider_reset_seconds,
            healthy=(StepRefusedError, CapturePutOffError),
        )
        wake = Wake(settings.valkey_url, "payments")
        runner = Runner(
            database,
            provider,
            breaker,
            published=wake,
            at_once=settings.steps_at_once,
            lease_seconds=settings.step_lease_seconds,
            poll_seconds=settings.step_poll_seconds,
            retry_seconds_min=settings.retry_seconds_min,
            retry_seconds_max=settings.retry_seconds_max,
        )
        upkeep = Upkeep(
            database,
            interval_seconds=settings.upkeep_interval_seconds,
            steps_kept_days=settings.steps_kept_days,
            inbox_kept_days=settings.inbox_kept_days,
        )
        intake = Intake(database, provider.name, taken=runner.wake)
        secret = settings.callback_secret.get_secret_value()

        token = ServiceToken.of(settings, scope="orders:read orders:read:any")
        events_url = settings.orders_url + "/v1/orders/{key}/events"
        async with EventsApi("orders-api", events_url, token, source=ORDERS_SOURCE) as api:
            consumer = Consumer(
                settings.kafka_url,
                group=PROCESS,
                topics=[topic],
                handle=intake.handle,
                fill=api.fill,
                stuck_after_seconds=settings.consumer_stuck_after_seconds,
            )

            def warnings() -> list[str]:
                return [
                    *([] if wake.healthy else ["valkey does not answer: events leave by polling"]),
                    *degraded(breaker, consumer.breaker, *api.breakers, verifier.breaker),
                    *([] if secret else ["there is no callback secret: callbacks are refused, polls tell"]),
                ]

            app.state.context = Context(database, provider.name, secret, runner.wake, warnings)
            wake.start()
            works = [
                asyncio.create_task(work, name=name)
                for name, work in (("consumer", consumer.run()), ("runner", runner.run()), ("upkeep", upkeep.run()))
            ]
            for work in works:
                work.add_done_callback(_end_with)
            try:
                yield
            finally:
                await _ended(works)
                await wake.close()
                await provider.aclose()
                await database.close()
                await verifier.aclose()

    return build_app(
        title="Payments",
        description="Takes callbacks of the payment provider: docs/payments.md.",
        routes=ROUTES,
        scopes={},
        token_url=f"{settings.issuer_url.removesuffix('/')}/token",  # where the issuer for development has it
        verifier=verifier,
        lifespan=lifespan,
    )


def _end_with(work: "asyncio.Task[None]") -> None:
    """Work that ends by itself has failed in a way nobody foresaw: the process ends, and its supervisor sees it."""
    if not work.cancelled():
        log.error("payments.work_failed", work=work.get_name(), exc_info=work.exception())
        os.kill(os.getpid(), signal.SIGTERM)


async def _ended(works: "list[asyncio.Task[None]]") -> None:
    """They run no more. They are told again, as aiokafka's closing may swallow a cancellation."""
    while left := [work for work in works if not work.done()]:
        for work in left:
            work.cancel()
        await asyncio.wait(left, timeout=6.0)


def main() -> None:
    """Serve until SIGTERM."""
    settings = PaymentsSettings()
    serve(PROCESS, settings, lambda: create_app(settings))
