"""What clients may ask."""

import json
from typing import Any

import pytest

from services.common.errors import DomainError
from services.realtime import frames
from services.realtime.frames import NoMoreOfOne, NoMoreOfOwn, OneOrder, OwnOrders

ORDER = "01JD5Q0000E2WXGF4K4Z7D3M5T"


@pytest.mark.parametrize(
    ("asked", "request_"),
    [
        ({"subscribe": {"order_id": ORDER}}, OneOrder(order_id=ORDER)),
        ({"subscribe": {"order_id": ORDER.lower(), "after_version": 3}}, OneOrder(order_id=ORDER, after_version=3)),
        ({"subscribe": {"all": True}}, OwnOrders(all=True)),
        ({"subscribe": {"all": True, "after": {ORDER: 2}}}, OwnOrders(all=True, after={ORDER: 2})),
        ({"unsubscribe": {"order_id": ORDER}}, NoMoreOfOne(order_id=ORDER)),
        ({"unsubscribe": {"all": True}}, NoMoreOfOwn(all=True)),
    ],
)
def test_a_request_is_understood(asked: Any, request_: frames.Request) -> None:
    assert frames.request(json.dumps(asked)) == request_


def known(count: int) -> dict[str, int]:
    return {f"01JD5Q0000E2WXGF4K4Z7D{number:04d}": 1 for number in range(count)}


@pytest.mark.parametrize(
    "asked",
    [
        [],
        {},
        None,
        "subscribe",
        {"subscribe": {"order_id": ORDER}, "unsubscribe": {"all": True}},
        {"follow": {"order_id": ORDER}},
        {"subscribe": None},
        {"subscribe": ORDER},
        {"subscribe": {}},
        {"subscribe": {"order_id": "x"}},
        {"subscribe": {"order_id": ORDER, "more": 1}},
        {"subscribe": {"order_id": ORDER, "after_version": -1}},
        {"subscribe": {"order_id": ORDER, "after_version": "1"}},
        {"subscribe": {"order_id": ORDER, "after_version": 1.5}},
        {"subscribe": {"order_id": ORDER, "after_version": 2**31}},
        {"subscribe": {"all": False}},
        {"subscribe": {"all": True, "order_id": ORDER}},
        {"subscribe": {"all": True, "after": {"x": 1}}},
        {"subscribe": {"all": True, "after": {ORDER: -1}}},
        {"subscribe": {"all": True, "after": known(1001)}},
        {"unsubscribe": {"order_id": ORDER, "after_version": 1}},
    ],
)
def test_anything_else_is_invalid(asked: Any) -> None:
    with pytest.raises(DomainError) as refused:
        frames.request(json.dumps(asked))
    assert (refused.value.code, refused.value.status) == ("invalid", 422)


def test_a_thousand_known_orders_are_taken_and_fit_a_frame() -> None:
    text = json.dumps({"subscribe": {"all": True, "after": dict.fromkeys(known(1000), 2**31 - 1)}})
    request = frames.request(text)
    assert isinstance(request, OwnOrders)
    assert len(request.after) == 1000
    assert len(text) < 64 * 1024


@pytest.mark.parametrize("text", ["", "{", "{'subscribe': 1}", "[" * 5000, '{"subscribe": NaN}'])
def test_what_is_no_json_is_told_so(text: str) -> None:
    with pytest.raises(DomainError) as refused:
        frames.request(text)
    assert refused.value.code == "malformed_json"


def test_a_binary_message_is_refused() -> None:
    with pytest.raises(DomainError) as refused:
        frames.request(b"{}")
    assert refused.value.code == "invalid"
