"""Plans and round trips of customers' statements: by primary key, however many customers there are."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from loadtests.explain import Explain
from services.common import clock, ids
from services.customers import repository
from services.customers.personal import Destination, Person, sealed
from services.customers.settings import CustomersSettings
from tests.customers import ADDRESSES, Customers, opened_customers, path_of
from tests.plans.proxy import counting_proxy

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

DEAR = {"Sort", "Incremental Sort", "Seq Scan"}
OF_ONE = 5  # addresses


@pytest.fixture
async def user_id(owner: "Connection") -> uuid.UUID:
    """One of many customers, who has OF_ONE addresses, one of them with the key `k`."""
    users = [uuid.uuid4() for _ in range(400)]
    now, person = clock.now(), sealed(Person("Ada"))
    place = sealed(Destination("Ada", ("Street",), "City", None, None, "GB", None))
    await owner.copy_records_to_table(
        "profiles",
        schema_name="customers",
        columns=["user_id", "version", "person", "updated_at"],
        records=[(user, 2, person, now) for user in users],
    )
    await owner.copy_records_to_table(
        "addresses",
        schema_name="customers",
        columns=["user_id", "address_id", "destination", "created_at", "key", "request_hash"],
        records=[
            (user, ids.new_id(now), place, now, *(("k", b"") if number == 0 else (None, None)))
            for user in users
            for number in range(OF_ONE)
        ],
    )
    await owner.execute("ANALYZE customers.profiles")
    await owner.execute("ANALYZE customers.addresses")
    return users[200]


def write(user_id: uuid.UUID) -> dict[str, Any]:
    """Values that statements which write want."""
    shard, now = ids.shard_of(user_id), clock.now()
    return {
        **{"user_id": user_id, "shard": shard, "slice": shard % ids.SLICES, "version": 3, "updated_at": now},
        **{"person": sealed(Person()), "address_id": ids.new_id(now), "destination": b"\x01{}", "created_at": now},
        **{"key": "k", "request_hash": b"", "retired_at": now, "replaced_by": None},
    }


@pytest.mark.parametrize("statement", [repository.PUT_PROFILE, repository.ERASE_PROFILE], ids=lambda s: s.name)
async def test_writing_a_profile_touches_one_row_and_tells_of_it(
    explain: Explain, user_id: uuid.UUID, statement: Any
) -> None:
    plan = await explain(statement, **write(user_id))
    assert not plan.node_types() & DEAR
    assert plan.indexes("profiles") <= {"pk_profiles"}
    (written,) = (n for n in plan.nodes() if n["Node Type"] == "ModifyTable" and n["Relation Name"] == "invalidations")
    assert written["Actual Rows"] == 1


async def test_round_trips_are_few_and_known(
    customers_settings: CustomersSettings, issuer: tuple[Path, str], owner: "Connection", tmp_path: Path
) -> None:
    async with counting_proxy(customers_settings.postgres_url, tmp_path) as proxy:
        settings = customers_settings.model_copy(update={"postgres_url": proxy.url, "cache_url": ""})
        async with opened_customers(settings, issuer[0], owner) as opened:
            address = await _warmed(opened)

            async def took(request: Any) -> tuple[int, int]:
                before = proxy.round_trips
                status = (await request).status_code
                return status, proxy.round_trips - before

            opened.customer = uuid.uuid4()
            assert await took(opened.get()) == (200, 1)
            assert await took(opened.patch(1, name="Ada")) == (200, 2)
            assert await took(opened.patch(1, name="Ada")) == (412, 1)
            assert await took(opened.get(ADDRESSES)) == (200, 1)
            assert await took(opened.get("/v1/me/export")) == (200, 1)
            assert await took(opened.get(path_of(address))) == (404, 1)
            # BEGIN and COMMIT are two of each.
            assert await took(opened.add(key="k")) == (201, 5)
            assert await took(opened.add(key="k")) == (201, 4)
            (address,) = await opened.addresses()
            assert await took(opened.replace(address, city="Bath")) == (201, 7)
            assert await took(opened.retire(address)) == (204, 4)
            assert await took(opened.erase()) == (204, 4)


async def _warmed(opened: Customers) -> dict[str, Any]:
    """An address of somebody else's, once every statement has been prepared."""
    await opened.started()
    address = await opened.added()
    await opened.replace(address, city="Bath")
    await opened.retire((await opened.addresses())[0])
    await opened.get("/v1/me/export")
    await opened.erase()
    return address
