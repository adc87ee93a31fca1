"""A role that may read everything and change nothing, for people and tests."""

import json
import secrets
from pathlib import Path

import asyncpg

from services.embedded.addresses import with_user
from services.embedded.errors import StackError
from services.embedded.records import write_json

ROLE = "orders_inspect"


async def inspection_url(admin_url: str, reach_url: str, home: Path) -> str | None:
    """The role exists with the password that `home` keeps; its URL, the server reached as in `reach_url`.

    None where we may not make roles: somebody else's server decides who inspects it.
    """
    password = _password(home)
    try:
        connection = await asyncpg.connect(admin_url, timeout=10)
        try:
            await connection.execute(
                # The name is ours and the password hexadecimal: nothing in them needs quoting.
                f"""
                DO $$ BEGIN
                    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN CREATE ROLE {ROLE}; END IF;
                END $$;
                ALTER ROLE {ROLE} LOGIN PASSWORD '{password}';
                ALTER ROLE {ROLE} SET default_transaction_read_only = on;
                GRANT pg_read_all_data, pg_monitor TO {ROLE};
                """
            )
        finally:
            await connection.close()
    except asyncpg.InsufficientPrivilegeError:
        return None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StackError(f"PostgreSQL does not let us in ({error})", "Is ORDERS_POSTGRES_URL right?") from error
    return with_user(reach_url, ROLE, password)


def _password(home: Path) -> str:
    path = home / "secrets.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if ROLE not in kept:
        kept[ROLE] = secrets.token_hex(16)
        write_json(path, kept)
    return kept[ROLE]
