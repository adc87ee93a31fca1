"""Products are found by name, by words and by words spelled alike, best first; and whatever is asked is answered."""

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from services.catalog import queries
from services.orders import seed as seeding
from tests.catalog import Catalogue
from tests.contracts.description import refused
from tests.integration.catalog.test_listing import plant

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]


async def search(catalogue: Catalogue, q: str, **params: Any) -> list[str]:
    """The names that are found, best first."""
    response = await catalogue.get("/v1/search", q=q, **params)
    assert response.status_code == 200, response.text
    assert response.json()["next_cursor"] is None
    return [product["name"] for product in response.json()["data"]]


@pytest.fixture
async def shop(catalogue: Catalogue) -> Catalogue:
    """A few products that resemble each other."""
    for name, description in (
        ("Teapot", "One litre."),
        ("Blue Teapot", "Glazed."),
        ("Blue Enamel Teapot with Lid", ""),
        ("Kettle", "Fills any teapot, a blue one too."),
        ("Teacup", "Holds what comes from a pot of tea."),
        ("Red Mug", ""),
        ("Teapoy", "A small table."),
        ("The Who, Live", "A record."),
        ("Café au lait bowl", "Größe M, 北京"),
    ):
        await catalogue.created(name=name, description=description)
    return catalogue


async def test_the_exact_name_comes_first_then_words_of_names_then_of_descriptions_then_what_is_spelled_alike(
    shop: Catalogue,
) -> None:
    by_words = ["Teapot", "Blue Teapot", "Blue Enamel Teapot with Lid", "Kettle"]
    assert await search(shop, "Teapot") == by_words
    assert await search(shop, "Teapots") == [*by_words, "Teapoy"]


FOUND: list[tuple[str, list[str]]] = [
    ("tEAPOT", ["Teapot", "Blue Teapot"]),
    ("  teapot ", ["Teapot", "Blue Teapot"]),
    ("teapots", ["Teapot", "Blue Teapot"]),
    ("teapot blue", ["Blue Teapot", "Blue Enamel Teapot with Lid", "Kettle"]),
    ("blue glazed", ["Blue Teapot"]),
    ("the who", ["The Who, Live"]),
    ("café", ["Café au lait bowl"]),
    ("größe", ["Café au lait bowl"]),
    ("GRÖßE", ["Café au lait bowl"]),
]
FOUND_ALONE: list[tuple[str, list[str]]] = [
    ('"blue teapot"', ["Blue Teapot"]),
    ("teapot -blue", ["Teapot"]),
    ("mug or kettle", ["Kettle", "Red Mug"]),
    *((q, []) for q in ("-blue", "-teapot -blue", "teapot -teapot", '"teapot blue"', "xqzv", "!!!", "the of and")),
]
MEANT = {
    "Teapot": ("teapt", "teaapot", "tepot", "teapott", "teappot", "teapod"),
    "Blue Enamel Teapot with Lid": ("enamle", "enammel", "enamel teapto", "ennamel"),
    "Kettle": ("ket", "kett", "kettel", "ketle"),
}


async def test_words_are_found_whatever_their_letters_endings_and_order(shop: Catalogue) -> None:
    for q, first in FOUND:
        assert (await search(shop, q))[: len(first)] == first, q


async def test_phrases_alternatives_and_what_is_not_wanted_are_heeded_to_the_letter(shop: Catalogue) -> None:
    for q, names in FOUND_ALONE:
        assert await search(shop, q) == names, q


async def test_typos_and_beginnings_of_words_find_what_was_meant(shop: Catalogue) -> None:
    for name, questions in MEANT.items():
        for q in questions:
            assert (await search(shop, q))[:1] == [name], q


async def test_filters_hold_for_every_way_of_being_found(catalogue: Catalogue) -> None:
    for number, name in enumerate(("Lantern", "Lantern Stand", "Candle", "Lanterm"), start=1):
        description = "for a lantern" if name == "Candle" else ""
        for price, currency, active in ((number, "USD", True), (10 + number, "EUR", True), (number, "USD", False)):
            await catalogue.created(name=name, description=description, price=price, currency=currency, active=active)
    names = ["Lantern", "Lantern Stand", "Candle", "Lanterm"]
    assert await search(catalogue, "lantern", currency="EUR") == names[:3]
    assert await search(catalogue, "lanterns", currency="EUR") == names
    assert await search(catalogue, "lanterns", currency="USD", active="false") == names
    assert await search(catalogue, "lanterns", currency="USD", price_from=2, price_to=4) == ["Lantern Stand", "Candle"]
    assert sorted(await search(catalogue, "lanterns")) == sorted(names * 2)


async def test_fewer_are_the_first_of_more(shop: Catalogue) -> None:
    every = await search(shop, "teapots")
    for limit in range(1, len(every) + 2):
        assert await search(shop, "teapots", limit=limit) == every[:limit]


async def test_a_change_is_found_at_once_and_what_was_before_no_more(catalogue: Catalogue) -> None:
    product_id = await catalogue.created(name="Hammock", description="of cotton")
    assert await search(catalogue, "hammock") == await search(catalogue, "cotton") == ["Hammock"]
    await catalogue.change(product_id, 1, name="Deckchair", description="of teak")
    assert await search(catalogue, "deckchair") == await search(catalogue, "teak") == ["Deckchair"]
    assert await search(catalogue, "hammock") == await search(catalogue, "cotton") == []


async def test_of_a_word_that_is_everywhere_a_full_page_is_found(
    catalogue: Catalogue, owner: "Connection", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "CANDIDATES_MAX", 100)
    await plant(owner, 500, name="'Candle ' || n")
    assert len(await search(catalogue, "candle", limit=100)) == 100
    assert len(await search(catalogue, "candel", limit=100)) == 100
    assert (await search(catalogue, "candle 499"))[0] == "Candle 499"


ODD = [
    *("\N{TEAPOT}", "\U0001f600" * 200, "e\u0301" * 100, "\u202eteapot", "\ufffd", "\x7f", "\u2028"),
    *(
        "'",
        "''",
        '"',
        '"""',
        "\\",
        "\\'",
        "%",
        "%%",
        "_",
        "' OR 1=1 --",
        "'; DROP TABLE catalog.products; --",
        "$1",
    ),
    *("&", "|", "!", "(", ")", "<->", "a <-> b", "a & | b", ":*", "teapot:*", "teapot:A", "-", "--", "or", "or or"),
    *("- -", '-"', '"-"', "a:b:c", "!!a", "*", "?", "/x/", "http://x.y/z?a=b", "a@b.c", "1e400", "NaN", "null"),
    *("x" * 200, "x " * 100, "a or " * 40, '"a" ' * 50, "-a " * 66, "the " * 50, "\u00a0", " "),
]


async def test_whatever_is_asked_is_answered_and_nothing_of_it_carried_out(shop: Catalogue) -> None:
    for q in ODD:
        response = await shop.get("/v1/search", q=q)
        assert response.status_code == 200, ascii(q)
    assert len(await search(shop, "teapot")) == 4


async def test_questions_that_are_none_are_invalid_and_say_where(catalogue: Catalogue) -> None:
    for q in ("", "x" * 201, "x" * 10_000, "\x00", "tea\x00pot", "\x1b[0m", "a\nb"):
        response = await catalogue.get("/v1/search", q=q)
        assert refused(response) == "422 invalid", ascii(q)[:40]
        assert [error["at"] for error in response.json()["errors"]] == ["/q"]
    for params in ({}, {"q": "x", "cursor": "x"}, {"q": "x", "sort": "name"}, {"q": "x", "limit": 0}):
        assert refused(await catalogue.get("/v1/search", **params)) == "422 invalid", params
    raw = await catalogue.client.get("/v1/search?q=%ff%fe%ed%a0%80")  # no UTF-8: taken as what stands for no character
    assert raw.status_code == 200


async def test_seeded_products_are_found_like_any_other(
    catalogue: Catalogue, database_url: str, owner: "Connection"
) -> None:
    await seeding.seed(database_url, products=20, orders=0, months=1)
    name = await owner.fetchval("SELECT name FROM catalog.products LIMIT 1")
    assert (await search(catalogue, name))[0] == name
