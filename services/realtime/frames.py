"""The messages of protocol `orders.v1` besides events: what clients may ask, and what they are told."""

from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field

from services.common.errors import DomainError, invalid
from services.common.http_request import parsed_json, validated
from services.common.openapi import problem_content
from services.common.schemas import VERSION_MAX, Body, Ulid
from services.realtime.hub import Frame

PATH: Final = "/v1/stream"
PROTOCOL: Final = "orders.v1"
KNOWN_ORDERS_MAX: Final = 1_000

Had = Annotated[int, Field(ge=0, le=VERSION_MAX)]


class OneOrder(Body):
    """One order, from the version after `after_version`."""

    order_id: Ulid
    after_version: Had = 0


class OwnOrders(Body):
    """All of one's own orders: those in `after` from the next version, others from their next event."""

    all: Literal[True]
    after: Annotated[dict[Ulid, Had], Field(max_length=KNOWN_ORDERS_MAX)] = Field(default_factory=dict)


class NoMoreOfOne(Body):
    """One order, no more."""

    order_id: Ulid


class NoMoreOfOwn(Body):
    """All of one's own, no more."""

    all: Literal[True]


Request = OneOrder | OwnOrders | NoMoreOfOne | NoMoreOfOwn


def request(message: str | bytes) -> Request:
    """What a client asks. 400 `malformed_json`; 422 `invalid` with the place and the reason of every fault."""
    if isinstance(message, bytes):
        raise invalid("Send text, not binary messages.")
    content = parsed_json(message.encode())
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= {"subscribe", "unsubscribe"}:
        raise invalid("Send an object with either `subscribe` or `unsubscribe`.")
    ((verb, what),) = content.items()
    everything = isinstance(what, dict) and "all" in what
    if verb == "subscribe":
        return validated(OwnOrders, what) if everything else validated(OneOrder, what)
    return validated(NoMoreOfOwn, what) if everything else validated(NoMoreOfOne, what)


def subscribed(order_id: str | None, after_version: int = 0) -> Frame:
    """The order's events after that version follow; of all of one's own when there is no order."""
    if order_id is None:
        return frame({"subscribed": {"all": True}})
    return frame({"subscribed": {"order_id": order_id, "after_version": after_version}})


def unsubscribed(order_id: str | None) -> Frame:
    """Nothing follows of it any more."""
    return frame({"unsubscribed": {"all": True} if order_id is None else {"order_id": order_id}})


def refused(error: DomainError) -> Frame:
    """The problem document of `error`; of an order it is what orders-api says, with its `instance`."""
    return frame({"error": problem_content(error.code, error.status, error.detail, PATH) | error.extra})


def frame(content: Any) -> Frame:
    """`content` as JSON."""
    value = orjson.dumps(content)
    return Frame(value.decode(), len(value))
