"""What a process is told of a database that does not answer."""

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionHolder

from services.common import db
from services.common.db import Database
from services.common.db_errors import TransientError
from tests.consuming import metric

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
