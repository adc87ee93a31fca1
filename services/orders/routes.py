"""What orders-api serves: every path, who may call it, and how it is described."""

from typing import Final

from pydantic import BaseModel

from services.common import openapi
from services.common.http import AnyOf, Public, Route
from services.common.openapi import IDEMPOTENCY_KEY, IF_MATCH, IF_NONE_MATCH, Operation
from services.common.schemas import HealthAnswer, ReadinessAnswer
from services.orders import answers, commands, report_schemas, schemas, stock
from services.orders.endpoints import (
    FULFIL,
    INVENTORY,
    PRICE,
    READ,
    READ_ANY,
    WRITE,
    adjust_stock,
    cancel_order,
    deliver_order,
    get_events,
    get_health,
    get_inventory,
    get_order,
    get_readiness,
    list_orders,
    place_order,
    return_order,
    ship_order,
)
from services.orders.report_endpoints import REPORTS, get_sales, list_summaries

SCOPES: Final = {
    READ: "read one's own orders and their events",
    READ_ANY: "read anybody's",
    WRITE: "place orders and cancel one's own",
    PRICE: "agree prices, add adjustments, and place orders for others",
    FULFIL: "cancel, ship, deliver and return anybody's orders",
    INVENTORY: "adjust stock",
    REPORTS: "read reports",
}

_TOO_SOON: Final[openapi.Refusals] = {"version_not_reached": (409, "The order has not reached that version.")}
_BAD_CURSOR: Final[openapi.Refusals] = {"bad_cursor": (400, "The cursor is not one we gave for this query.")}
_NOT_OPEN: Final[openapi.Refusals] = {
    "invalid": (422, "The request is not valid, or the order has not that much of a line; `errors` says where and why.")
}
_NOT_ALLOWED: Final[openapi.Refusals] = {"transition_not_allowed": (409, "An order that is shipped cannot cancel.")}

_PLACE: Final = Operation(
    answers.OrderAnswer,
    status=201,
    body=schemas.PlaceOrderBody,
    headers=(IDEMPOTENCY_KEY,),
    answer_headers=("ETag", "Location"),
    refusals=commands.REFUSALS,
    description="Without `payment_method` the order is on account and starts `confirmed`. With one it starts `pending`;"
    " it is `confirmed` once its payment is authorized, and `cancelled` when that fails or `expires_at` has come.",
)
_LIST: Final = Operation(
    answers.OrdersPage,
    query=schemas.ListQuery,
    refusals=_BAD_CURSOR,
    description="One's own orders. A page may be short, or empty, and still have a `next_cursor`: follow it to null.",
)
_GET: Final = Operation(
    answers.OrderAnswer,
    query=schemas.OrderQuery,
    headers=(IF_NONE_MATCH,),
    answer_headers=("ETag", "X-Cache", "Age"),
    refusals=_TOO_SOON,
    description="An order that is missing and one that is not the caller's are refused alike.",
)
_EVENTS: Final = Operation(
    answers.EventsPage,
    query=schemas.EventsQuery,
    description="In version order, without a gap. `next_cursor` is the `after_version` of the next page.",
)
_SUMMARIES: Final = Operation(
    report_schemas.SummariesPage,
    query=report_schemas.SummariesQuery,
    refusals=_BAD_CURSOR,
    description="Orders that are open, and those of the last 24 hours, as they stood at `as_of`, about half a minute"
    " ago while all is well. A page may be short, or empty, and still have a `next_cursor`: follow it to null. An"
    " order that stays is found once, however often all is refreshed meanwhile.",
)
_SALES: Final = Operation(
    report_schemas.SalesReport,
    query=report_schemas.SalesQuery,
    refusals=openapi.UNAVAILABLE,
    description="What was placed, cancelled and refunded, each on the day (UTC) it happened; by product the thousand"
    " that sold most; by status the orders placed in the interval as they stand now. Read from a replica: `as_of` says"
    " how far it has come, and without one that is fresh enough there is no report.",
)
_STOCK: Final = Operation(answers.StockAnswer, answer_headers=("ETag", "X-Cache", "Age"))
_ADJUST: Final = Operation(
    answers.StockAnswer,
    status=201,
    body=schemas.AdjustStockBody,
    headers=(IDEMPOTENCY_KEY,),
    answer_headers=("ETag",),
    refusals=stock.REFUSALS,
    description="The answer is the stock right after this adjustment. Orders move stock by themselves: this is for what"
    " came, went or was counted by hand.",
)
_READY: Final = Operation(ReadinessAnswer, refusals=openapi.UNAVAILABLE)


def _commanded(body: type[BaseModel], refusals: openapi.Refusals, description: str) -> Operation:
    return Operation(
        answers.OrderAnswer,
        body=body,
        body_required=False,
        headers=(IDEMPOTENCY_KEY, IF_MATCH),
        answer_headers=("ETag",),
        refusals=refusals | _NOT_ALLOWED,
        description=description,
    )


_CANCEL: Final = _commanded(
    schemas.CancelBody, {}, "An owner's only reason, and the default, is `customer`; others are for orders:fulfil."
)
_SHIP: Final = _commanded(
    schemas.ShipBody,
    _NOT_OPEN,
    "All that is not shipped yet, or `items` of it: the order is `partially_shipped` until nothing is left to ship.",
)
_DELIVER: Final = _commanded(schemas.DeliverBody, {}, "From `shipped`: once all of the order is.")
_RETURN: Final = _commanded(
    schemas.ReturnBody,
    _NOT_OPEN,
    "All that has not come back yet, or `items` of it: the order is `partially_returned` until all has. What is"
    " returned can be sold again.",
)

_OWN: Final = AnyOf((READ,))
_STAFF: Final = AnyOf((FULFIL,))
_ID: Final = "/v1/orders/{order_id}"
_STOCK_OF: Final = "/v1/inventory/{product_id}"

ROUTES: Final = (
    Route("POST", "/v1/orders", place_order, AnyOf((WRITE,)), "Place an order", "orders", _PLACE),
    Route("GET", "/v1/orders", list_orders, _OWN, "List orders, newest first", "orders", _LIST),
    Route("GET", _ID, get_order, _OWN, "Get an order", "orders", _GET),
    Route("GET", f"{_ID}/events", get_events, _OWN, "Get an order's events", "orders", _EVENTS),
    Route("POST", f"{_ID}/cancel", cancel_order, AnyOf((WRITE, FULFIL)), "Cancel an order", "commands", _CANCEL),
    Route("POST", f"{_ID}/ship", ship_order, _STAFF, "Ship an order", "commands", _SHIP),
    Route("POST", f"{_ID}/deliver", deliver_order, _STAFF, "Deliver an order", "commands", _DELIVER),
    Route("POST", f"{_ID}/return", return_order, _STAFF, "Return an order", "commands", _RETURN),
    Route(
        *("GET", "/v1/order-summaries", list_summaries, AnyOf((READ_ANY,))),
        *("List open and young orders in short, newest first", "summaries", _SUMMARIES),
    ),
    Route("GET", "/v1/reports/sales", get_sales, AnyOf((REPORTS,)), "Get a report of sales", "reports", _SALES),
    Route("GET", _STOCK_OF, get_inventory, AnyOf(), "Get a product's stock", "inventory", _STOCK),
    Route(
        *("POST", f"{_STOCK_OF}/adjustments", adjust_stock, AnyOf((INVENTORY,))),
        *("Adjust a product's stock", "inventory", _ADJUST),
    ),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can requests be served", "health", _READY),
)
