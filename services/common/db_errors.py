"""What the driver's errors mean, and which of them another try mends.

They become `Refused`, `LockTimeoutError`, or `TransientError`, which the edge of a process may run again: `retried`.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg
import orjson
import stamina
import structlog

from services.common import metrics
from services.common.db_watch import RESET_SECONDS
from services.common.errors import unavailable

T = TypeVar("T")
log = structlog.get_logger()

REFUSED: Final = "RF001"  # SQLSTATE of the SQL function `refuse`: the message is the code, the detail a JSON object
RETRY_ATTEMPTS: Final = 5
RETRY_WITHIN_SECONDS: Final = 0.8  # a dead primary is answered with 503 within a second (DESIGN section 9)
_NO_ANSWER: Final = "The database does not answer; nothing is known to be stored. Send the same request again."
CONNECTION_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection asked between the server's last words and its end
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting up, cancelled by statement_timeout
    asyncpg.InsufficientResourcesError,  # too many connections, out of memory, disk full
    asyncpg.ReadOnlySQLTransactionError,  # a primary that has become a standby
)


class TransientError(Exception):
    """The transaction did not happen, or nobody knows whether it did: whoever has a key may run it again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LeftAloneError(TransientError):
    """Nothing was asked of the database: it does not answer, and is left alone for RESET_SECONDS at a time."""

    def __init__(self) -> None:
        super().__init__("left_alone")


class Refused(Exception):  # noqa: N818 # it is a verdict of the database, which its service turns into a DomainError
    """The database refused: `code` as given to the SQL function `refuse`, or the name of the violated CHECK."""

    def __init__(self, code: str, extra: dict[str, Any]) -> None:
        super().__init__(code, extra)
        self.code = code
        self.extra = extra


class LockTimeoutError(Exception):
    """A lock was not granted within lock_timeout; `context` is PostgreSQL's, and names the relation waited for."""

    def __init__(self, context: str) -> None:
        super().__init__(context)
        self.context = context


def translate(error: Exception) -> Exception:
    """What a driver's error means: a refusal, something that may be tried again, or (a bug) the error itself.

    Its DETAIL is taken off it: that quotes the row that was refused, and a traceback would bring it into the log.
    """
    detail = None
    if isinstance(error, asyncpg.PostgresError):
        detail, error.detail = error.detail, None
    match error:
        case asyncpg.PostgresError() if error.sqlstate == REFUSED:
            return Refused(str(error.args[0]), orjson.loads(detail or "{}"))
        case asyncpg.CheckViolationError() if error.constraint_name is None:
            return unavailable("There is no partition for now yet.", retry_after_seconds=10)
        case asyncpg.CheckViolationError():
            return Refused(error.constraint_name or "", {})
        case asyncpg.LockNotAvailableError():
            return LockTimeoutError(error.context or "")
        case asyncpg.SerializationError() | asyncpg.DeadlockDetectedError():
            return TransientError("serialization")
        case asyncpg.QueryCanceledError():
            return unavailable("The database took too long.")
        case asyncpg.DataError():
            return error  # an argument of the wrong type: ours to mend, not the client's
        case _ if isinstance(error, CONNECTION_LOST):
            return TransientError("connection")
        case _:
            return error


async def retried(operation: Callable[[], Awaitable[T]]) -> T:
    """What `operation` gives; when it fails in passing it is run again, up to a second. Then 503 `unavailable`.

    At once so when the database is left alone, which does not answer.
    Only for operations that may run twice: reads, and writes that hang on an idempotency key.
    """
    try:
        try:
            return await operation()
        except TransientError as error:
            if isinstance(error, LeftAloneError):
                raise
            log.warning("db.retry", reason=error.reason)
            metrics.db_retries_total.labels(error.reason).inc()
        async for attempt in stamina.retry_context(
            on=lambda error: isinstance(error, TransientError) and not isinstance(error, LeftAloneError),
            attempts=RETRY_ATTEMPTS,
            timeout=RETRY_WITHIN_SECONDS,
            wait_initial=0.02,
            wait_jitter=0.05,
            wait_max=0.25,
        ):
            with attempt:
                return await operation()
    except LockTimeoutError as error:  # no row that two want, which the caller knows better: a table is held
        raise unavailable("The database is busy with maintenance.") from error
    except LeftAloneError as error:  # counted by its breaker
        raise unavailable(_NO_ANSWER, retry_after_seconds=math.ceil(RESET_SECONDS)) from error
    except TransientError as error:
        log.error("db.unavailable", reason=error.reason)
        raise unavailable(_NO_ANSWER) from error
    raise AssertionError("stamina either returns or raises")
