"""Orders that leave, and come back, in parts: what each command answers, and the stock to the unit after it."""

import asyncio
from typing import Any

import httpx

from services.orders.invariants import verify
from services.orders.rebuild import rebuild
from tests.contracts.description import refused
from tests.integration.orders.test_commands import change, keys, same
from tests.shop import Shop


def items(*parts: tuple[int, int], **more: Any) -> dict[str, Any]:
    """A body that names (line, quantity) parts."""
    return {"items": [{"line_no": line_no, "quantity": quantity} for line_no, quantity in parts], **more}


def moved(order: dict[str, Any]) -> list[tuple[int, int]]:
    """(shipped, returned) of each line."""
    return [(line["shipped_quantity"], line["returned_quantity"]) for line in order["items"]]


async def done(response: httpx.Response, status: str) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    order: dict[str, Any] = response.json()
    assert order["status"] == status
    return order


async def assert_all_is_well(database_url: str) -> None:
    """Every invariant holds, and the rows are what the events tell."""
    report = await verify(database_url)
    assert [message for verdict in report.verdicts for message in verdict.messages] == []
    result = await rebuild(database_url)
    assert (result.written, result.products, result.left) == (0, 0, [])


async def test_an_order_leaves_and_comes_back_in_parts_and_stock_is_exact_after_each(
    shop: Shop, database_url: str
) -> None:
    tea, cup = await shop.product(stock=10), await shop.product(stock=20)
    order = await shop.placed((tea, 3), (cup, 4), (tea, 2))  # one product on two lines
    steps: list[tuple[str, dict[str, Any], str, list[tuple[int, int]], tuple[int, int], tuple[int, int]]] = [
        ("ship", items((3, 1)), "partially_shipped", [(0, 0), (0, 0), (1, 0)], (9, 4), (20, 4)),
        ("ship", items((2, 4), (1, 1)), "partially_shipped", [(1, 0), (4, 0), (1, 0)], (8, 3), (16, 0)),
        ("ship", {}, "shipped", [(3, 0), (4, 0), (2, 0)], (5, 0), (16, 0)),
        ("deliver", {}, "delivered", [(3, 0), (4, 0), (2, 0)], (5, 0), (16, 0)),
        ("return", items((1, 1), (3, 1)), "partially_returned", [(3, 1), (4, 0), (2, 1)], (7, 0), (16, 0)),
        ("return", items((2, 4)), "partially_returned", [(3, 1), (4, 4), (2, 1)], (7, 0), (20, 0)),
        ("return", {}, "returned", [(3, 3), (4, 4), (2, 2)], (10, 0), (20, 0)),
    ]
    for version, (name, body, status, lines, of_tea, of_cup) in enumerate(steps, start=2):
        response = await shop.command(order, name, body)
        order = await done(response, status)
        assert (order["version"], moved(order)) == (version, lines)
        assert (await shop.stock(tea), await shop.stock(cup)) == (of_tea, of_cup)
        assert (await shop.get(f"/v1/orders/{order['order_id']}")).content == response.content
    assert order["allowed_actions"] == []
    assert order["total_amount"] == 9 * 1999  # a return says nothing of money
    await assert_all_is_well(database_url)


async def test_the_last_of_the_parts_makes_it_whole_named_or_not(shop: Shop, database_url: str) -> None:
    product = await shop.product()
    for last in ({}, items((1, 1), (2, 1))):
        order = await shop.placed((product, 2), (product, 1))
        order = await done(await shop.command(order, "ship", items((1, 1))), "partially_shipped")
        order = await done(await shop.command(order, "ship", last), "shipped")
        order = await done(await shop.command(order, "deliver"), "delivered")
        order = await done(await shop.command(order, "return", items((1, 1))), "partially_returned")
        order = await done(await shop.command(order, "return", last), "returned")
    assert await shop.stock(product) == (100, 0)
    await assert_all_is_well(database_url)


async def test_events_say_what_moved_and_the_last_tracking_given_stays(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2), (product, 2))
    for body, tracking in (
        (items((2, 1), (1, 1), tracking="A"), "A"),
        (items((1, 1)), "A"),
        ({"tracking": "B"}, "B"),
    ):
        order = (await shop.command(order, "ship", body)).json()
        assert order["tracking"] == tracking
    order = (await shop.command(order, "deliver")).json()
    order = (await shop.command(order, "return", items((2, 2)))).json()
    assert [
        (event["type"], event["data"]["change"]) for event in [await change(shop, order, n) for n in range(2, 7)]
    ] == [
        ("order.shipped", items((1, 1), (2, 1), tracking="A", amount=3998)),
        ("order.shipped", items((1, 1), tracking=None, amount=1999)),
        ("order.shipped", items((2, 1), tracking="B", amount=1999)),
        ("order.delivered", {}),
        ("order.returned", items((2, 2), amount=3998)),
    ]
    assert order["tracking"] == "B"


async def test_a_replay_of_a_part_is_its_first_answer_and_moves_no_stock(shop: Shop, database_url: str) -> None:
    product = await shop.product()
    order = await shop.placed((product, 5))
    given: list[tuple[dict[str, Any], str, dict[str, Any], str, httpx.Response]] = []
    for number, (name, body) in enumerate(
        [
            ("ship", items((1, 2), tracking="A")),
            ("ship", items((1, 2), tracking="B")),
            ("ship", {}),
            ("deliver", {}),
            ("return", items((1, 1))),
            ("return", {}),
        ]
    ):
        first = await shop.command(order, name, body, key=f"k{number}")
        given.append((order, name, body, f"k{number}", first))
        order = first.json()
        stock = await shop.stock(product)
        for before, command, sent, key, answer in given:
            assert same(await shop.command(before, command, sent, key=key), answer)
        assert await shop.stock(product) == stock
    assert [answer.json()["status"] for *_, answer in given] == [
        "partially_shipped",
        "partially_shipped",
        "shipped",
        "delivered",
        "partially_returned",
        "returned",
    ]
    assert refused(await shop.command(given[0][0], "ship", items((1, 1), tracking="A"), key="k0")) == "422 key_reused"
    await assert_all_is_well(database_url)


async def test_more_than_is_open_and_lines_that_are_not_there_are_refused_and_change_nothing(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 3), (product, 2))

    async def faults(name: str, *parts: tuple[int, int]) -> list[tuple[str, int, int | None]]:
        stock, stored = await shop.stock(product), await keys(shop)
        response = await shop.command(order, name, items(*parts))
        assert refused(response) == "422 invalid"
        assert (await shop.stock(product), await keys(shop)) == (stock, stored)
        assert (await shop.get(f"/v1/orders/{order['order_id']}")).json() == order
        return [(fault["at"], fault["line_no"], fault.get("open")) for fault in response.json()["errors"]]

    assert await faults("ship", (1, 4)) == [("/items/0/quantity", 1, 3)]
    assert await faults("ship", (2, 2), (3, 1)) == [("/items/1/line_no", 3, None)]
    order = (await shop.command(order, "ship", items((1, 2)))).json()
    assert await faults("ship", (2, 3), (1, 2), (9, 1)) == [
        ("/items/0/quantity", 2, 2),
        ("/items/1/quantity", 1, 1),
        ("/items/2/line_no", 9, None),
    ]
    order = (await shop.command(order, "ship", items((1, 1)))).json()
    assert await faults("ship", (1, 1)) == [("/items/0/quantity", 1, 0)]
    order = (await shop.command(order, "ship")).json()
    order = (await shop.command(order, "deliver")).json()
    assert await faults("return", (1, 4), (2, 1)) == [("/items/0/quantity", 1, 3)]
    order = (await shop.command(order, "return", items((1, 2)))).json()
    assert await faults("return", (1, 2)) == [("/items/0/quantity", 1, 1)]
    assert await shop.stock(product) == (97, 0)


async def test_the_version_and_the_status_are_looked_at_before_the_parts(shop: Shop) -> None:
    pending = await shop.placed(payment_method="pm_1")
    nonsense = items((9, 9))
    for name in ("ship", "return"):
        assert refused(await shop.command(pending, name, nonsense, if_match='"2"')) == "412 version_mismatch"
        assert refused(await shop.command(pending, name, nonsense)) == "409 transition_not_allowed"


async def test_a_refused_part_is_judged_afresh_with_the_same_key(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2))
    assert refused(await shop.command(order, "ship", items((1, 3)), key="k")) == "422 invalid"
    shipped = await done(await shop.command(order, "ship", items((1, 2)), key="k"), "shipped")
    assert refused(await shop.command(shipped, "return", items((1, 1)), key="r")) == "409 transition_not_allowed"
    delivered = await done(await shop.command(shipped, "deliver"), "delivered")
    await done(await shop.command(delivered, "return", items((1, 1)), key="r"), "partially_returned")


async def test_of_commands_that_race_at_one_version_one_is_carried_out(shop: Shop, database_url: str) -> None:
    product = await shop.product()
    for name, status in (("ship", "partially_shipped"), ("return", "partially_returned")):
        for _ in range(5):
            order = await shop.placed((product, 4))
            for before in [] if name == "ship" else ["ship", "deliver"]:
                order = (await shop.command(order, before)).json()
            on_hand, reserved = await shop.stock(product)
            responses = await asyncio.gather(
                shop.command(order, name, items((1, 2))), shop.command(order, name, items((1, 3)))
            )
            assert sorted(refused(response) for response in responses) == ["200", "412 version_mismatch"]
            (order,) = [response.json() for response in responses if response.status_code == 200]
            assert order["status"] == status
            units = max(moved(order)[0]) if name == "ship" else moved(order)[0][1]
            effect = (-units, -units) if name == "ship" else (units, 0)
            assert await shop.stock(product) == (on_hand + effect[0], reserved + effect[1])
    await assert_all_is_well(database_url)


async def test_a_return_is_for_those_who_fulfil(shop: Shop) -> None:
    order = await shop.placed()
    response = await shop.command(order, "return", scope="orders:read orders:write")
    assert refused(response) == "403 scope_missing"
