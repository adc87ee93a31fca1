"""A circuit breaker for asynchronous calls: what fails again and again is left alone for a while.

pybreaker keeps the state machine: so many failures in a row open it, one success closes it. It was written for
synchronous calls, and here gets only their outcomes. What this module adds is when a call may be made at all: one
probe in half-open, however many want to call; a monotonic clock; a deadline; and cancellation, which says nothing
about the part that was called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Counter, Gauge
from pybreaker import (
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreaker,
    CircuitBreakerListener,
    CircuitBreakerState,
)

T = TypeVar("T")
_NUMBERS: Final = {STATE_CLOSED: 0, STATE_HALF_OPEN: 1, STATE_OPEN: 2}

_log = structlog.get_logger()
breaker_state = Gauge("breaker_state", "0 closed, 1 half-open, 2 open", ["breaker"])
breaker_rejections_total = Counter("breaker_rejections_total", "Calls that were not made", ["breaker"])
breaker_failures_total = Counter("breaker_failures_total", "Calls that failed or had no answer in time", ["breaker"])
breaker_probes_total = Counter(
    "breaker_probes_total",
    "Calls that tried whether the part is back: success, failure, cancelled",
    ["breaker", "outcome"],
)


class BreakerOpenError(Exception):
    """The call was not made; it may be worth another try in `retry_after` seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"{name} is left alone for {retry_after:.3f} s more")
        self.retry_after = retry_after


class Breaker:
    """The breaker of the part `name`, in one event loop.

    After `failures` calls in a row that raised, it opens: for `reset_seconds` no call is made. Then one is, the probe:
    it closes the breaker or opens it again. A call is given `deadline_seconds`, after which it raises TimeoutError,
    a failure like any. Exceptions of the types in `healthy` are answers, and count as success.
    """

    def __init__(
        self,
        name: str,
        *,
        deadline_seconds: float,
        failures: int = 5,
        reset_seconds: float = 10.0,
        healthy: tuple[type[Exception], ...] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._deadline_seconds = deadline_seconds
        self._reset_seconds = reset_seconds
        self._monotonic = monotonic
        self._state = STATE_CLOSED
        self._opened_at = self._probed_at = float("-inf")
        self._probing = False
        self._machine = CircuitBreaker(
            name=name,
            fail_max=failures,
            exclude=[lambda error: isinstance(error, healthy)],
            listeners=[_Listener(self._changed)],
            throw_new_error_on_trip=False,
        )
        breaker_state.labels(name).set(_NUMBERS[STATE_CLOSED])
        breaker_rejections_total.labels(name)  # so that their zero is seen
        breaker_failures_total.labels(name)

    @property
    def name(self) -> str:
        """Of the part."""
        return self._name

    @property
    def state(self) -> str:
        """`closed`, `half-open` or `open`."""
        return self._state

    @property
    def left_alone(self) -> bool:
        """Whether a call would not be made now: it is open, or its one probe is under way."""
        return self.state != STATE_CLOSED and (self._probing or self.retry_after > 0)

    @property
    def retry_after(self) -> float:
        """The seconds until a call may be worth a try: until the end of the window, or of the probe under way."""
        if self.state == STATE_CLOSED:
            return 0.0
        until = self._probed_at + self._deadline_seconds if self._probing else self._opened_at + self._reset_seconds
        return max(0.0, until - self._monotonic())

    def rejected(self) -> BreakerOpenError:
        """To be raised where a call is not made; it is counted."""
        breaker_rejections_total.labels(self._name).inc()
        return BreakerOpenError(self._name, self.retry_after)

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """What `function` gives or raises. BreakerOpenError when it was not called, TimeoutError past the deadline."""
        probe = self._admit()
        admitted = self._machine.state
        outcome = "cancelled"  # unless it ends with an answer or an error
        try:
            async with asyncio.timeout(self._deadline_seconds):
                result = await function()
        except Exception as error:
            outcome = "failure" if self._machine.is_system_error(error) else "success"
            self._told(admitted, error)
            raise
        else:
            outcome = "success"
            self._told(admitted, None)
            return result
        finally:
            if probe:
                self._probing = False
                breaker_probes_total.labels(self._name, outcome).inc()

    def _admit(self) -> bool:
        """Whether the call is the probe. BreakerOpenError when it may not be made."""
        if self.state == STATE_CLOSED:
            return False
        if self.left_alone:
            raise self.rejected()
        if self.state == STATE_OPEN:
            self._machine.half_open()
        self._probing, self._probed_at = True, self._monotonic()
        return True

    def _told(self, admitted: CircuitBreakerState, error: Exception | None) -> None:
        """The state machine knows how a call ended, if it was begun in the state that still is: others are no probe."""
        if error is not None and self._machine.is_system_error(error):
            breaker_failures_total.labels(self._name).inc()
        if self._machine.state is not admitted or (error is None and self._flawless):
            return
        try:
            self._machine.call(_ended, error)
        except Exception as raised:
            if raised is not error:
                raise

    @property
    def _flawless(self) -> bool:
        """Whether a success changes nothing."""
        return self._state == STATE_CLOSED and not self._machine.fail_counter

    def _changed(self, state: str) -> None:
        self._state = state
        if state == STATE_OPEN:
            self._opened_at = self._monotonic()


def degraded(*breakers: Breaker) -> list[str]:
    """A sentence for each part that is left alone or has yet to show that it is back: for /readyz."""
    return [
        f"{breaker.name} does not answer: it is left alone" for breaker in breakers if breaker.state != STATE_CLOSED
    ]


class _Listener(CircuitBreakerListener):
    """Shows each change of state, and the failure that opened it: one line, where thousands may fail for one reason."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._reason: str | None = None

    def failure(self, cb: CircuitBreaker, exc: BaseException) -> None:  # noqa: ARG002 # pybreaker's signature
        """It is told before the change of state that it causes."""
        self._reason = repr(exc)

    def state_change(
        self, cb: CircuitBreaker, old_state: CircuitBreakerState | None, new_state: CircuitBreakerState
    ) -> None:
        """It has happened."""
        self._changed(new_state.name)
        breaker_state.labels(cb.name).set(_NUMBERS[new_state.name])
        told = {"breaker": cb.name, "before": old_state.name if old_state else None, "state": new_state.name}
        if new_state.name == STATE_OPEN:
            _log.warning("breaker.state", **told, reason=self._reason)
        else:
            _log.info("breaker.state", **told)


def _ended(error: Exception | None) -> Any:
    if error is not None:
        raise error
