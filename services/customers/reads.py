"""The profile, read through the cache, which holds it sealed as the database does. Whoever decides reads none."""

from uuid import UUID

import structlog

from services.common import clock, ids
from services.common.cache import Cache
from services.common.cached import Answer, Entry, Key
from services.common.db import Database
from services.contracts.cache import PROFILE
from services.customers import personal, queries
from services.customers.domain import Profile

log = structlog.get_logger()


def cache_key(user_id: UUID) -> Key:
    """By what name the cache knows the profile."""
    return Key(PROFILE, ids.to_text(user_id))


async def get_profile(database: Database, cache: Cache | None, user_id: UUID) -> tuple[Profile, Answer]:
    """The profile, and where it comes from. 503 `unavailable`.

    One round trip to the cache, or up to three and the database's.
    """

    async def load() -> Entry:
        return _entry(await queries.get_profile(database, user_id))

    answer = None if cache is None else await cache.read(cache_key(user_id), load, reader=str(user_id))
    if answer is not None:
        try:
            return _profile(user_id, answer.entry), answer
        except ValueError as error:  # another release's: it goes with its time
            log.warning("customers.cached_not_understood", error=str(error))
    # No cache, or what it has is not this customer's: it answers nobody.
    loaded = Answer(await load(), "bypass")
    return _profile(user_id, loaded.entry), loaded


def _entry(profile: Profile) -> Entry:
    """As it is kept: the time of the last change in ms, empty when there was none, and the person sealed."""
    at = b"" if profile.updated_at is None else b"%d" % clock.to_ms(profile.updated_at)
    return Entry(str(profile.user_id), profile.version, at + b" " + personal.sealed(profile.person))


def _profile(user_id: UUID, entry: Entry) -> Profile:
    at, _, person = entry.body.partition(b" ")
    return Profile(user_id, entry.version, personal.person(person), clock.from_ms(int(at)) if at else None)
