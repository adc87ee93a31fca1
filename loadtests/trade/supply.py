"""What has to be there before anybody orders: products in the catalogue, and of each the stock that is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from http import HTTPStatus
from typing import Final

import httpx
import orjson

from loadtests.trade.target import Target, ask, each, http, problem_code, reasons, settled
from loadtests.trade.trade import Product, Trade, TradeError, demand

ARRIVES_WITHIN_SECONDS: Final = 60.0  # from the catalogue's commit over Kafka to the copy that orders keep
CHANGES_MAX: Final = 3  # of a product that somebody else changes at the same time


@dataclass(frozen=True, slots=True)
class RefusedProduct:
    """A product that the catalogue did not take, and why."""

    code: str
    price: str
    status: int
    problem: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stock:
    """Units of a product, as the API told them."""

    on_hand: int
    reserved: int


async def put_products(target: Target, trade: Trade, concurrency: int) -> list[RefusedProduct]:
    """All products are in the catalogue as the data have them, but for those it refused, which are returned.

    Can be run again: what is there already and the same stays as it is, what differs is changed. TradeError without a
    catalogue.
    """
    if target.catalog is None:
        raise TradeError("This stack has no catalogue: no `catalog` in its endpoints.json.")
    refused: list[RefusedProduct] = []
    async with http(target.catalog, target.bearer(trade.name, "catalog:write"), concurrency) as client:

        async def put(product: Product) -> None:
            response = await _put(client, product, trade.currency)
            if response.is_error:
                refused.append(
                    RefusedProduct(
                        *(product.code, amount_text(product.price), response.status_code),
                        *(problem_code(response), reasons(response)),
                    )
                )

        await each(trade.products, concurrency, put)
    return sorted(refused, key=lambda product: product.code)


async def _put(client: httpx.AsyncClient, product: Product, currency: str) -> httpx.Response:
    path = f"/v1/products/{product.product_id}"
    body = {"name": product.name, "price": json_number(product.price), "currency": currency, "active": True}
    response = await ask(client, "PUT", path, body)
    for _ in range(CHANGES_MAX):
        if response.status_code not in {HTTPStatus.PRECONDITION_REQUIRED, HTTPStatus.PRECONDITION_FAILED}:
            break
        seen = await ask(client, "GET", path)  # it is there and differs
        if seen.is_error:
            return seen
        response = await ask(client, "PUT", path, body, headers={"If-Match": seen.headers["etag"]})
    return response


async def stock_up(target: Target, trade: Trade, run: str, concurrency: int) -> Mapping[str, Stock]:
    """There is as much more of each product as the run's acceptable orders want; gives the stock right after that.

    Once for each run: the same run again changes nothing and is told the same. Waits for products that the catalogue
    has only just told orders about; TradeError when one does not arrive.
    """
    wanted = demand(order for order in trade.orders if order.acceptable)
    stocked: dict[str, Stock] = {}
    async with http(target.orders, target.bearer(trade.name, "inventory:write"), concurrency) as client:

        async def stock(product_id: str) -> None:
            path = f"/v1/inventory/{product_id}/adjustments"
            body = {"delta": wanted[product_id], "reason": f"trade {run}"}
            response = await settled(
                lambda: ask(client, "POST", path, body, key=f"{run}:{product_id}"),
                lambda answer: answer.status_code != HTTPStatus.NOT_FOUND,
                seconds=ARRIVES_WITHIN_SECONDS,
            )
            if response.status_code != HTTPStatus.CREATED:
                raise TradeError(f"{path} answered {response.status_code}: {response.text}")
            answer = response.json()
            stocked[product_id] = Stock(answer["on_hand"], answer["reserved"])

        await each(sorted(wanted), concurrency, stock)
    return stocked


def codes(trade: Trade) -> Mapping[str, str]:
    """Of each product id, the code in the data."""
    return {product.product_id: product.code for product in trade.products}


def json_number(amount: Decimal) -> int | orjson.Fragment:
    """`amount` as a JSON number, exactly; one that is not whole stays so, for the API to refuse."""
    return int(amount) if amount == amount.to_integral_value() else orjson.Fragment(amount_text(amount))


def amount_text(amount: Decimal) -> str:
    """`amount` in plain digits, without trailing zeros."""
    return f"{int(amount)}" if amount == amount.to_integral_value() else f"{amount.normalize():f}"


def unexpected(trade: Trade, refused: Sequence[RefusedProduct]) -> list[str]:
    """Where the catalogue took what it must refuse, or refused what it must take, or for another reason."""
    by_code = {product.code: product for product in refused}
    found = []
    for product in trade.products:
        answer = by_code.get(product.code)
        if product.acceptable and answer:
            found.append(f"product {product.code}: refused with {answer.problem}, {answer.reasons[:1]}")
        elif not product.acceptable and (answer is None or answer.problem != "invalid"):
            found.append(f"product {product.code} at {amount_text(product.price)}: not refused as invalid")
    return found
