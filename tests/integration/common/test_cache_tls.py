"""A cache by TLS is who its certificate says, or it is not asked anything."""

from pathlib import Path

import pytest
from cryptography import x509
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.common.cache import Cache, breaker
from services.common.cached import Entry, Key
from services.common.caches import store
from services.contracts.cache import ORDER
from tests.consuming import metric
from tests.redis_tls import HOST, Authority, RedisTls, redis_tls, this_machine

ANN = "ann"
KEY = Key(ORDER, "1")
PATIENT_SECONDS = 10.0


async def load() -> Entry:
    return Entry(ANN, 1, b"body")


async def _outcomes(url: str, reads: int = 2) -> list[str]:
    cache = Cache(store(url), breaker(PATIENT_SECONDS))
    answers = [await cache.read(KEY, load, reader=ANN) for _ in range(reads)]
    entry = await load()
    assert all(answer and answer.entry == entry for answer in answers)
    await cache.close()
    return [answer.outcome for answer in answers if answer]


async def _commands(server: RedisTls) -> set[str]:
    """What it was ever asked, besides by this and by who waited for it."""
    looking = Redis(host=HOST, port=server.port, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
    found = set(await looking.info("commandstats"))
    await looking.aclose()
    return {name for name in found if name.partition("_")[2] not in {"ping", "info", "hello", "client|setinfo"}}


async def test_one_whose_certificate_is_good_is_used(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    async with redis_tls(*authority.server(this_machine())) as server:
        assert await _outcomes(server.url(authority.path)) == ["miss", "hit"]
        assert "cmdstat_get" in await _commands(server)


@pytest.mark.parametrize("wrong", ["authority", "name", "no authority at all"])
async def test_one_that_cannot_prove_who_it_is_is_asked_nothing_and_that_is_told(tmp_path: Path, wrong: str) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    name = x509.DNSName("elsewhere.example") if wrong == "name" else this_machine()
    async with redis_tls(*(theirs if wrong == "authority" else ours).server(name)) as server:
        url = server.url(ours.path)
        failed = metric("cache_failures_total", part="get")
        with capture_logs() as logs:
            assert await _outcomes(url.partition("?")[0] if wrong == "no authority at all" else url) == ["bypass"] * 2
        assert metric("cache_failures_total", part="get") == failed + 2
        said = [line["error"] for line in logs if line["event"] == "cache.failed"]
        assert said
        assert all("certificate" in error for error in said), said
        assert await _commands(server) == set()
