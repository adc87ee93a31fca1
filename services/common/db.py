"""PostgreSQL: statements written in SQLAlchemy Core, compiled once, and run on asyncpg.

A single statement runs outside an explicit transaction (no BEGIN, no ROLLBACK round trip). Driver errors become what
the layers above know: `db_errors`.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NewType, cast

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.types import TypeEngine

from services.common import metrics
from services.common.breaker import Breaker, BreakerOpenError
from services.common.db_errors import CONNECTION_LOST, LeftAloneError, TransientError, retried, translate
from services.common.db_watch import Watch

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

ReadConnection = NewType("ReadConnection", "PoolConnectionProxy[asyncpg.Record]")
WriteConnection = NewType("WriteConnection", ReadConnection)

Row = asyncpg.Record

Isolation = Literal["read_committed", "repeatable_read"]


# Belts for a session that something leaves open, and the plans these statements want. On a partitioned parent custom
# plans cost 2 to 10 times the statement itself. Every statement of a process has its index: reading a table from end to
# end only looks cheap while the table is small, and what the planner has once chosen generically it keeps.
SESSION: Final[Mapping[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "random_page_cost": "1.1",
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "transaction_timeout": "30s",
    "jit": "off",
    "TimeZone": "UTC",
}
OPEN_TIMEOUT_SECONDS: Final = 10.0  # of the first connection: no request waits for it yet, and slow is not dead
CONNECT_TIMEOUT_SECONDS: Final = 0.5
ACQUIRE_TIMEOUT_SECONDS: Final = (
    2.5  # a little over lock_timeout: whoever queues behind one frozen lock still gets its turn
)
COMMAND_TIMEOUT_SECONDS: Final = 6.0  # a little over statement_timeout: for a server that does not even answer that
CLOSE_TIMEOUT_SECONDS: Final = 5.0
_DIALECT = asyncpg_dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # SQLAlchemy has no types here


class Statement:
    """A SQL statement with named parameters, compiled once. `name` is its label in metrics.

    It also stands at the end of the text, as a comment: so logs, pg_stat_activity and pg_stat_statements tell whose it
    is. At its start PostgreSQL 18 would take it off before it counts the statement.
    """

    __slots__ = ("_observe", "_parameters", "name", "sql")

    def __init__(self, name: str, clause: ClauseElement) -> None:
        compiled = clause.compile(dialect=_DIALECT)
        self.name = name
        self.sql = f"{compiled}\n/* {name} */"
        self._parameters: tuple[str, ...] = tuple(dict.fromkeys(getattr(compiled, "positiontup", None) or ()))
        self._observe = metrics.db_query_seconds.labels(name).observe

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """`values` in the order of $1, $2, …; KeyError when one is missing."""
        return [values[name] for name in self._parameters]

    async def rows(self, connection: ReadConnection, **values: object) -> list[asyncpg.Record]:
        """All rows, in one round trip. Raises DomainError or TransientError."""
        return await self._fetched(connection, connection.fetch(self.sql, *self.arguments(values)))

    async def rows_of_each(
        self, connection: WriteConnection, values: Sequence[Mapping[str, object]]
    ) -> list[asyncpg.Record]:
        """All rows of the statement run once for each of `values`, in their order, in one round trip. Raises as `rows`.

        For a transaction: it does all of them or fails.
        """
        return await self._fetched(connection, connection.fetchmany(self.sql, [self.arguments(one) for one in values]))

    async def _fetched(
        self, connection: ReadConnection, fetching: Awaitable[list[asyncpg.Record]]
    ) -> list[asyncpg.Record]:
        started = time.perf_counter()
        try:
            return await fetching
        except (asyncpg.PostgresError, *CONNECTION_LOST) as error:
            if isinstance(error, asyncpg.InternalClientError):
                discard(connection)  # nobody knows its state: the pool must not give it to the next
            metrics.db_errors_total.labels(self.name, getattr(error, "sqlstate", None) or "connection").inc()
            raise translate(error) from error
        finally:
            elapsed = time.perf_counter() - started
            self._observe(elapsed)
            if (timings := metrics.request_timings.get()) is not None:
                timings.db += elapsed


def statement(name: str, sql: str, types: Mapping[str, TypeEngine[Any]]) -> Statement:
    """`sql` with its parameters (`:name`) typed by their names; those that `types` does not have are text."""
    names = sorted(set(re.findall(r"(?<![:\w]):([a-z_]+)", sql)))
    return Statement(name, sa.text(sql).bindparams(*(sa.bindparam(n, type_=types.get(n, sa.Text())) for n in names)))


def column_types(metadata: sa.MetaData) -> dict[str, TypeEngine[Any]]:
    """The types of the columns of all tables, by the columns' names."""
    return {column.name: column.type for table in metadata.tables.values() for column in table.columns}


class Database:
    """A pool of connections to one server, each prepared for the hot path."""

    def __init__(
        self,
        url: str,
        *,
        application_name: str,
        size_max: int = 16,
        size_min: int = 1,
        command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
        settings: Mapping[str, str] = MappingProxyType({}),
        name: str | None = None,
    ) -> None:
        """`settings` are of its sessions, besides and before SESSION.

        With a `name`, which no other of the process has, it is watched: while the server does not answer nothing is
        asked of it, and whoever waits for it hears so at once.
        """
        self._url = url
        self._command_timeout_seconds = command_timeout_seconds
        self._settings = {**SESSION, **settings, "application_name": application_name}
        self._size_max, self._size_min = size_max, size_min
        self._label = name or application_name
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._kept: list[WriteConnection] = []  # idle, and not given back: the pool's own way there and back is long
        self._waiting = 0  # callers the pool has none for
        self._since: dict[object, float] = {}  # connections that are out, and waits for one, in order of their begin
        self._watch = None if name is None else Watch(name, self._connect, self._since, self._end_all)

    @property
    def breaker(self) -> Breaker:
        """Of the server; only of a database that has a name."""
        assert self._watch is not None  # noqa: S101 # named where it was made
        return self._watch.breaker

    async def open(self) -> None:
        """Connections can be taken afterwards. Raises TransientError when the server does not answer."""
        connecting: dict[str, Any] = {
            "command_timeout": self._command_timeout_seconds,
            "max_cached_statement_lifetime": 0,  # the default of 300 s makes every connection plan anew
            "server_settings": self._settings,
        }
        pool = asyncpg.create_pool(
            self._url,
            min_size=self._size_min,
            max_size=self._size_max,
            max_inactive_connection_lifetime=0,
            reset=_no_reset,
            timeout=OPEN_TIMEOUT_SECONDS,
            **connecting,
        )
        try:
            await pool
        except (asyncpg.PostgresError, *CONNECTION_LOST) as error:
            raise translate(error) from error
        pool.set_connect_args(self._url, timeout=CONNECT_TIMEOUT_SECONDS, **connecting)
        self._pool = pool
        metrics.db_pool_connections.labels(self._label, "open").set_function(pool.get_size)
        idle = metrics.db_pool_connections.labels(self._label, "idle")
        idle.set_function(lambda: pool.get_idle_size() + len(self._kept))
        if self._watch is not None:
            self._watch.start()

    async def close(self) -> None:
        """Every connection is closed; statements under way are given a moment."""
        if self._watch is not None:
            await self._watch.close()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    while self._kept:
                        await pool.release(self._kept.pop())
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    async def rows(self, statement: Statement, **values: object) -> list[Row]:
        """All rows of `statement`, which is its own transaction (READ COMMITTED): one round trip."""
        async with self.session() as connection:
            return await statement.rows(connection, **values)

    async def read(self, statement: Statement, **values: object) -> list[Row]:
        """As `rows`, for a statement that only reads: when it fails in passing it is run again, up to a second."""
        return await retried(partial(self.rows, statement, **values))

    def session(self) -> "_Session":
        """`async with` it for one connection for several statements, each of them a transaction."""
        return _Session(self)

    @asynccontextmanager
    async def transaction(self, isolation: Isolation | None = None) -> AsyncIterator[WriteConnection]:
        """A transaction, READ COMMITTED if not said: committed when the block ends, rolled back when it raises."""
        async with self.session() as connection:
            transaction = connection.transaction(isolation=isolation)
            try:
                async with transaction:
                    yield connection
            except (asyncpg.PostgresError, *CONNECTION_LOST) as error:  # BEGIN or COMMIT; statements translate theirs
                raise translate(error) from error

    async def _take(self) -> WriteConnection:
        """A connection. TransientError when there is none in time."""
        while self._kept:
            connection = self._kept.pop()
            if _alive(connection):  # a dead one is the pool's again already
                self._since[connection] = time.monotonic()
                return connection
        if self._pool is None:
            raise TransientError("not connected")
        if self._watch is not None:
            try:
                self._watch.admit()
            except BreakerOpenError as error:
                raise LeftAloneError from error
        connection = await self._acquired(self._pool)
        self._since[connection] = time.monotonic()
        return connection

    async def _acquired(self, pool: "asyncpg.Pool[asyncpg.Record]") -> WriteConnection:
        started = time.perf_counter()
        self._waiting += 1
        wait = asyncio.timeout(None)  # the pool has its own; this one is for `_end_all`
        self._since[wait] = time.monotonic()
        try:
            async with wait:
                return WriteConnection(ReadConnection(await pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)))
        except (asyncpg.PostgresError, *CONNECTION_LOST) as error:
            metrics.db_errors_total.labels("connect", getattr(error, "sqlstate", None) or "connection").inc()
            self._suspect()
            raise translate(error) from error
        finally:
            del self._since[wait]
            self._waiting -= 1
            elapsed = time.perf_counter() - started
            metrics.db_pool_wait_seconds.observe(elapsed)
            if (timings := metrics.request_timings.get()) is not None:
                timings.pool += elapsed

    async def _give_back(self, connection: WriteConnection) -> None:
        """The pool has it, which waits for the end of a cancelled statement and replaces a closed connection."""
        if not _alive(connection):
            self._suspect()
        try:
            if self._pool is not None:
                await self._pool.release(connection)
        except CONNECTION_LOST:  # the pool has ended it; whoever had it knows by itself how its statement went
            metrics.db_errors_total.labels("release", "connection").inc()
            self._suspect()
        finally:
            self._since.pop(connection, None)

    def _suspect(self) -> None:
        if self._watch is not None:
            self._watch.suspect()

    async def _connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection for the watch; it says when that has taken too long."""
        settings = {
            "application_name": f"{self._settings['application_name']} watch",
            "tcp_keepalives_idle": "60",  # it may be silent for days, which no firewall is to take for its end
        }
        return await asyncpg.connect(self._url, server_settings=settings)

    async def _end_all(self) -> None:
        """Whoever waits for the server hears at once that it does not answer; no connection is used again."""
        for waits in list(self._since):
            if not isinstance(waits, asyncio.Timeout):
                discard(cast("WriteConnection", waits))
            elif not waits.expired():
                waits.reschedule(asyncio.get_running_loop().time())
        while self._kept:
            discard(self._kept.pop())
        if self._pool is not None:
            await self._pool.expire_connections()


class _Session:
    """A connection for the time of an `async with`."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __aenter__(self) -> WriteConnection:
        self._connection = await self._database._take()
        return self._connection

    async def __aexit__(self, kind: object, *_: object) -> None:
        database = self._database
        if kind is None and not database._waiting and database._pool is not None:
            del database._since[self._connection]
            database._kept.append(self._connection)
        else:
            await database._give_back(self._connection)


def _alive(connection: WriteConnection) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has noticed its end, and taken it back
        return False


def discard(connection: ReadConnection) -> None:
    """The connection ends now, and its session with it; the pool makes another when one is wanted."""
    with suppress(asyncpg.InterfaceError):  # it has ended by itself
        connection.terminate()


async def _no_reset(_: object) -> None:
    """Sessions hold nothing to reset: no temporary state is ever made on a pooled connection."""
