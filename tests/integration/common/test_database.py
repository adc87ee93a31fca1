"""What a process is told of a database that does not answer."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionHolder

from services.common import db
from services.common.db import Database
from services.common.db_errors import TransientError
from tests.consuming import metric
from tests.faults.cutting import Door

ONE = db.statement("test_one", "SELECT 1 AS one", {})


async def test_a_connection_that_cannot_be_given_back_hides_no_failure(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the pool does it when the server falls silent, and the end of a cancelled statement is not heard in time."""

    async def silent(holder: PoolConnectionHolder, timeout: float | None) -> None:  # noqa: ARG001, ASYNC109 # asyncpg's
        holder._con.terminate()  # type: ignore[attr-defined] # asyncpg-stubs lacks it
        raise TimeoutError

    database = Database(database_url, application_name="test", size_max=1)
    await database.open()

    async def lost() -> None:
        async with database.transaction():
            raise asyncpg.ConnectionDoesNotExistError

    counted = metric("db_errors_total", statement="release", sqlstate="connection")
    with monkeypatch.context() as patch:
        patch.setattr(PoolConnectionHolder, "release", silent)
        with pytest.raises(TransientError):
            await lost()
    assert metric("db_errors_total", statement="release", sqlstate="connection") == counted + 1
    assert [row["one"] for row in await database.rows(ONE)] == [1]
    await database.close()


async def test_the_first_connection_may_be_late(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "CONNECT_TIMEOUT_SECONDS", 0.05)
    async with Door(database_url, tmp_path) as door:
        door.hold()
        database = Database(door.url, application_name="test")
        opening = asyncio.create_task(database.open())
        await asyncio.wait([opening], timeout=10 * db.CONNECT_TIMEOUT_SECONDS)  # the time that passes is what is tested
        assert not opening.done()
        door.let_go()
        await opening
        assert [row["one"] for row in await database.rows(ONE)] == [1]
        await database.close()
