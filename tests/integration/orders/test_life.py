"""The whole life of orders through the API and the database, against a model that only counts."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.common.after_commit import AfterCommit
from services.common.db import Database
from services.contracts.orders import Event, fold, members_of
from services.contracts.payments import PaymentState
from services.orders import invariants
from services.orders.answers import render_order
from services.orders.settlements import settle_orders
from tests.conftest import AsRole
from tests.contracts.description import refused
from tests.payment_events import as_received, payment, told
from tests.shop import Shop

T = TypeVar("T")
SALES = "orders:read orders:write orders:price"
COMMANDS = ("cancel", "ship", "deliver", "return")
PRODUCTS = 3
Parts = dict[int, int]

quantities = st.integers(1, 4)
orders: Bundle["Modelled"] = Bundle("orders")


@dataclass(eq=False)
class Modelled:
    """An order as the model has it, and the last answer that told of it."""

    lines: dict[int, tuple[int, int, int]]  # number of the product, quantity, price charged
    total: int
    status: str
    answer: bytes
    shown: dict[str, Any]
    declined: bool | None = None  # nobody has said yet
    told: int = 0  # states of its payment
    gone: Counter[int] = field(default_factory=Counter)
    back: Counter[int] = field(default_factory=Counter)

    def open(self, command: str) -> Parts:
        """Units a line that the command can move."""
        if command == "ship":
            return {line: quantity - self.gone[line] for line, (_, quantity, _) in self.lines.items()}
        if command == "return":
            return {line: self.gone[line] - self.back[line] for line in self.lines}
        return {}

    def allows(self, command: str) -> bool:
        return self.status in {
            "cancel": ("pending", "confirmed"),
            "ship": ("confirmed", "partially_shipped"),
            "deliver": ("shipped",),
            "return": ("delivered", "partially_returned"),
        }.get(command, ())

    def advance(self, command: str, parts: Parts) -> None:
        """As after the command."""
        match command:
            case "cancel":
                self.status = "cancelled"
            case "deliver":
                self.status = "delivered"
            case "ship":
                self.gone.update(parts)
                self.status = "partially_shipped" if any(self.open("ship").values()) else "shipped"
            case "return":
                self.back.update(parts)
                self.status = "partially_returned" if any(self.open("return").values()) else "returned"


class Life(RuleBasedStateMachine):
    """Random commands on random orders. The rules run in a thread, the shop in the loop of the test."""

    def __init__(self, shop: Shop, projector: Database, inspect_url: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.shop, self.projector, self.inspect_url, self.loop = shop, projector, inspect_url, loop
        self.orders: list[Modelled] = []

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    @initialize(target=orders, stock=st.lists(st.integers(8, 16), min_size=PRODUCTS, max_size=PRODUCTS))
    def open(self, stock: list[int]) -> Any:
        """Two orders are there from the start, so that most steps have something to work on."""
        self.on_hand, self.reserved = Counter(dict(enumerate(stock))), Counter[int]()
        self.prices = [100 + number for number in range(PRODUCTS)]
        self.products = [
            self.wait(self.shop.product(price=price, stock=units))
            for price, units in zip(self.prices, stock, strict=True)
        ]
        return multiple(
            *(self.place_order([(0, 2, None), (1, 1, None), (0, 1, 90)], [5], paid) for paid in (False, True))
        )

    # --- the buyer and the sales desk

    @rule(
        target=orders,
        lines=st.lists(
            st.tuples(st.integers(0, PRODUCTS - 1), quantities, st.none() | quantities), min_size=1, max_size=3
        ),
        amounts=st.lists(st.integers(-8, 8), max_size=3),
        paid=st.booleans(),
    )
    def place(self, lines: list[tuple[int, int, int | None]], amounts: list[int], paid: bool) -> Any:
        placed = self.place_order(lines, amounts, paid)
        return multiple() if placed is None else placed

    def place_order(
        self, lines: list[tuple[int, int, int | None]], amounts: list[int], paid: bool
    ) -> "Modelled | None":
        items = [
            {"product_id": self.products[number], "quantity": quantity, "unit_price": agreed}
            for number, quantity, agreed in lines
        ]
        adjustments = [
            {"kind": "discount" if amount < 0 else "fee", "line_no": None, "label": "x", "amount": amount}
            for amount in amounts
        ]
        method = "pm_x" if paid else None
        body: dict[str, Any] = {"items": items, "adjustments": adjustments, "payment_method": method}
        response = self.wait(self.shop.place(headers=self.shop.auth(SALES), **body))
        charged = [agreed or self.prices[number] for number, _, agreed in lines]
        total = sum(price * quantity for price, (_, quantity, _) in zip(charged, lines, strict=True)) + sum(amounts)
        demand = Counter[int]()
        for number, quantity, _ in lines:
            demand[number] += quantity
        if total < 0:
            assert refused(response) == "422 total_negative"
            return None
        if any(self.on_hand[number] - self.reserved[number] < units for number, units in demand.items()):
            assert refused(response) == "409 out_of_stock"
            return None
        assert response.status_code == 201, response.text
        self.reserved.update(demand)
        modelled = Modelled(
            {n: (*line[:2], price) for n, (line, price) in enumerate(zip(lines, charged, strict=True), 1)},
            total,
            "pending" if paid else "confirmed",
            response.content,
            response.json(),
        )
        self.orders.append(modelled)
        return modelled

    # --- commands

    @rule(order=orders, command=st.sampled_from(COMMANDS), data=st.data())
    def command(self, order: Modelled, command: str, data: st.DataObject) -> None:
        parts = self.draw_parts(order, command, data)
        response = self.wait(self.send(order, command, parts))
        self.judge(order, command, parts, response)

    @rule(order=orders, whole=st.booleans(), far=st.booleans())
    def go_on(self, order: Modelled, whole: bool, far: bool) -> None:
        """The next step of a life, or all that are left, paid if it is to be, so that many get to their end."""
        self.catch_up(order, declined=False)
        for command in ("ship", "deliver", "return"):
            if order.allows(command):
                line = next((line for line, units in order.open(command).items() if units), 0)
                parts = None if whole or not line else {line: 1}
                self.judge(order, command, parts, self.wait(self.send(order, command, parts)))
                if not far:
                    return
        self.catch_up(order, declined=False)

    @rule(order=orders, command=st.sampled_from(COMMANDS))
    @precondition(lambda self: any(order.shown["version"] > 1 for order in self.orders))
    def command_what_has_changed_since(self, order: Modelled, command: str) -> None:
        if order.shown["version"] > 1:
            response = self.wait(self.send(order, command, None, if_match=f'"{order.shown["version"] - 1}"'))
            assert refused(response) == "412 version_mismatch"

    @rule(order=orders, first=st.sampled_from(COMMANDS), second=st.sampled_from(COMMANDS))
    def race(self, order: Modelled, first: str, second: str) -> None:
        legal = [command for command in (first, second) if order.allows(command)]
        open_before = {command: order.open(command) for command in (first, second)}

        async def both() -> tuple[httpx.Response, httpx.Response]:
            return await asyncio.gather(self.send(order, first, None), self.send(order, second, None))

        responses = self.wait(both())
        won = [
            (command, response)
            for command, response in zip((first, second), responses, strict=True)
            if response.status_code == 200
        ]
        lost = [refused(response) for response in responses if response.status_code != 200]
        assert len(won) == min(1, len(legal))
        assert set(lost) <= {"412 version_mismatch", "409 transition_not_allowed"}
        for command, response in won:
            self.judge(order, command, open_before[command], response)

    @rule(order=orders, command=st.sampled_from(COMMANDS), data=st.data())
    def repeat(self, order: Modelled, command: str, data: st.DataObject) -> None:
        parts = self.draw_parts(order, command, data)

        async def twice() -> list[httpx.Response]:
            key, version = f"{order.shown['order_id']}-{order.shown['version']}-{command}", order.shown["version"]
            return [await self.send(order, command, parts, key=key, if_match=f'"{version}"') for _ in range(2)]

        first, second = self.wait(twice())
        assert (first.status_code, first.content) == (second.status_code, second.content)
        assert ("idempotency-replayed" in second.headers) == (first.status_code == 200)
        self.judge(order, command, parts, first)

    # --- the payment provider

    @rule(order=orders, declined=st.booleans())
    def pay(self, order: Modelled, declined: bool) -> None:
        self.catch_up(order, declined)

    def catch_up(self, order: Modelled, declined: bool) -> None:
        """The payment tells where it is: declined once for ever, or authorized, captured and refunded as it should."""
        if order.shown["payment_method"] is None:
            return
        order.declined = declined if order.declined is None else order.declined
        pending, moved = order.status == "pending", self.amounts(order)
        if pending:
            order.status = "cancelled" if order.declined else "confirmed"
            for number, quantity, _ in order.lines.values() if order.declined else ():
                self.reserved[number] -= quantity
        order.told += 1
        state = PaymentState.FAILED if order.declined else PaymentState.AUTHORIZED
        if order.status == "cancelled" and not order.declined:
            state = PaymentState.VOIDED
        amounts = () if order.declined else (order.total, moved["order.shipped"], moved["order.returned"])
        said = as_received(told(payment(order.shown, state, *amounts, version=order.told)))
        self.wait(settle_orders(self.projector, AfterCommit(lambda: None, None), "t", said))
        found = self.wait(self.shop.get(f"/v1/orders/{order.shown['order_id']}"))
        order.answer, order.shown = found.content, found.json()
        assert (order.shown["captured_amount"], order.shown["refunded_amount"]) == (
            *(moved["order.shipped"], moved["order.returned"]),
        )
        if pending:
            assert order.shown["payment_status"] == ("failed" if order.declined else "authorized")
        if order.status == "returned" and order.total:
            assert order.shown["payment_status"] == "refunded"

    def amounts(self, order: Modelled) -> Counter[str]:
        """What the events say fell to the units that left, and to those that came back."""
        page = self.wait(self.shop.get(f"/v1/orders/{order.shown['order_id']}/events", limit=1000)).json()
        moved = Counter[str]()
        for event in page["data"]:
            if event["type"] in ("order.shipped", "order.returned"):
                moved[event["type"]] += event["data"]["change"]["amount"]
        return moved

    # --- the warehouse and the catalogue

    @rule(number=st.integers(0, PRODUCTS - 1), delta=st.integers(-6, 6).filter(bool))
    def adjust(self, number: int, delta: int) -> None:
        response = self.wait(self.shop.adjust(self.products[number], delta))
        if self.on_hand[number] + delta < self.reserved[number]:
            assert refused(response) == "409 below_reserved"
        else:
            assert response.status_code == 201
            self.on_hand[number] += delta

    @rule(number=st.integers(0, PRODUCTS - 1), price=st.integers(1, 500))
    def reprice(self, number: int, price: int) -> None:
        self.wait(self.shop.change_product(self.products[number], price=price))
        self.prices[number] = price

    # --- what always holds

    @invariant()
    def every_order_and_all_stock_are_as_modelled(self) -> None:
        for order in self.orders:
            found = self.wait(self.shop.get(f"/v1/orders/{order.shown['order_id']}"))
            assert found.content == order.answer  # a refused command has not changed a byte
            shown = found.json()
            assert (shown["status"], shown["total_amount"]) == (order.status, order.total)
            assert [
                (item["quantity"], item["unit_price"], item["shipped_quantity"], item["returned_quantity"])
                for item in shown["items"]
            ] == [
                (quantity, price, order.gone[line], order.back[line])
                for line, (_, quantity, price) in order.lines.items()
            ]
            assert shown["allowed_actions"] == [command for command in sorted(COMMANDS) if order.allows(command)]
        for number, product in enumerate(getattr(self, "products", ())):
            assert self.wait(self.shop.stock(product)) == (self.on_hand[number], self.reserved[number])

    def teardown(self) -> None:
        for order in self.orders:
            page = self.wait(self.shop.get(f"/v1/orders/{order.shown['order_id']}/events", limit=1000)).json()
            assert render_order(members_of(fold(Event(**event) for event in page["data"]))) == order.answer
        assert self.wait(invariants.verify(self.inspect_url)).violated == []

    # --- how it is done

    def draw_parts(self, order: Modelled, command: str, data: st.DataObject) -> Parts | None:
        """Some lines, of them some units, at times more than are open or a line that is not there; or all that is."""
        if command not in ("ship", "return") or data.draw(st.booleans()):
            return None
        lines = st.integers(1, len(order.lines) + 1)
        return data.draw(st.dictionaries(lines, quantities, min_size=1, max_size=3))

    async def send(self, order: Modelled, command: str, parts: Parts | None, **more: Any) -> httpx.Response:
        items = [{"line_no": line, "quantity": units} for line, units in (parts or {}).items()]
        return await self.shop.command(order.shown, command, {"items": items} if items else {}, **more)

    def judge(self, order: Modelled, command: str, parts: Parts | None, response: httpx.Response) -> None:
        open_ = order.open(command)
        if not order.allows(command):
            assert refused(response) == "409 transition_not_allowed"
            return
        if any(units > open_.get(line, 0) for line, units in (parts or {}).items()):
            assert refused(response) == "422 invalid"
            return
        assert response.status_code == 200, response.text
        moved = (open_ if parts is None else parts) if command in ("ship", "return") else {}
        for line, (number, quantity, _) in order.lines.items():
            units = moved.get(line, 0)
            if command == "cancel":
                self.reserved[number] -= quantity
            elif command == "ship":
                self.on_hand[number] -= units
                self.reserved[number] -= units
            elif command == "return":
                self.on_hand[number] += units
        order.advance(command, moved)
        order.answer, order.shown = response.content, response.json()


async def test_whatever_is_done_the_orders_and_the_stock_are_what_was_done(shop: Shop, as_role: AsRole) -> None:
    loop = asyncio.get_running_loop()
    projector = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=1)
    await projector.open()
    await asyncio.to_thread(
        run_state_machine_as_test,
        lambda: Life(shop, projector, as_role("orders_inspect"), loop),  # type: ignore[arg-type] # any factory, as documented
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate,),  # twenty steps can be read; to make them fewer would take minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    await projector.close()
