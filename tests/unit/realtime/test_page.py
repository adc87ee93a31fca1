"""The page and what it is made of: who may keep which, and for how long."""

import re

import httpx
import pytest

from services.realtime import api
from services.realtime.page import hashed
from services.realtime.settings import RealtimeSettings


@pytest.fixture
async def client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=api.create_app(RealtimeSettings()))
    return httpx.AsyncClient(transport=transport, base_url="http://realtime")


def test_another_content_has_another_name() -> None:
    assert re.fullmatch(r"page\.[0-9a-f]{16}\.js", hashed("page.js", b"one"))
    assert hashed("page.js", b"one") == hashed("page.js", b"one")
    assert hashed("page.js", b"one") != hashed("page.js", b"two")


async def test_the_page_is_asked_for_again_and_what_it_names_is_kept_for_ever(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    assert (await client.get("/", headers={"If-None-Match": page.headers["etag"]})).status_code == 304
    assert (await client.get("/", headers={"If-None-Match": '"other"'})).content == page.content
    named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert [name.rpartition(".")[2] for name in named] == ["css", "js"]
    for name, media_type in zip(named, ("text/css", "text/javascript"), strict=True):
        asset = await client.get(f"/{name}")
        assert asset.headers["content-type"] == f"{media_type}; charset=utf-8"
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert asset.headers["x-content-type-options"] == "nosniff"
        stem, _, kind = name.removeprefix("assets/").split(".")
        assert f"assets/{hashed(f'{stem}.{kind}', asset.content)}" == name


async def test_a_name_that_no_file_has_is_not_found_and_not_kept(client: httpx.AsyncClient) -> None:
    for name in ("page.0000000000000000.js", "page.js", "page.html"):
        missing = await client.get(f"/assets/{name}")
        assert missing.status_code == 404
        assert missing.headers["cache-control"] == "private, no-store"


async def test_what_may_be_kept_says_when_it_was_made_and_nothing_else_does(client: httpx.AsyncClient) -> None:
    assert "date" in (await client.get("/")).headers
    assert "date" not in (await client.get("/healthz")).headers
