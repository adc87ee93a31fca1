"""Whatever a client sends, the answer is a success or a refusal of the contract: never a 500, never none."""

import asyncio
import json
import secrets
import uuid
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import clock, ids, money
from tests.contracts.description import refused
from tests.contracts.test_openapi import STATUS
from tests.integration.orders.conftest import Served
from tests.shop import Shop

BODY_BYTES_MAX: Final = 256 * 1024
KNOWN: Final = STATUS.keys() | {"method_not_allowed"}


NO_OBJECTS: Final[list[Any]] = [None, 1, "x", [], True, 1.5]
NO_QUANTITIES: Final[list[Any]] = [
    *(0, -1, 1_000_001, 2**31, 2**63, 2**64, 10**30, 1.0, 1e3, True, "1", None, [1], {}),
]


def judged(response: httpx.Response) -> httpx.Response:
    """The response, which is a success or a known refusal."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] in KNOWN
    return response


async def post(shop: Shop, content: Any, *, path: str = "/v1/orders", key: str | bytes | None = None) -> httpx.Response:
    """POST those bytes as JSON."""
    headers: list[tuple[bytes, bytes]] = [
        (b"authorization", shop.auth("orders:write orders:fulfil orders:price")["Authorization"].encode()),
        (b"content-type", b"application/json"),
        (b"idempotency-key", key.encode() if isinstance(key, str) else key or secrets.token_hex(8).encode()),
    ]
    return judged(await shop.client.post(path, content=content, headers=headers))


def order_with(product: str, **line: Any) -> dict[str, Any]:
    return {"currency": "USD", "items": [{"product_id": product, "quantity": 1, **line}]}


# --- bodies


async def test_what_is_no_json_text_of_ours_is_malformed(shop: Shop) -> None:
    malformed = [
        b"\x00",
        b"{",
        b'{"currency": "USD",}',
        b'{"currency": "\xff"}',
        b'\xef\xbb\xbf{"currency": "USD"}',
        rb'{"currency": "\ud800"}',
        rb'{"\udfff": 1}',
        b'{"currency": NaN}',
        b'{"currency": 1e400}',
        b'{"currency": -Infinity}',
        b'{"currency": "US\x00"}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        '{"currency": "USD"}'.encode("utf-16"),
        b"{} {}",
    ]
    for content in malformed:
        assert refused(await post(shop, content)) == "400 malformed_json", content[:40]


async def test_what_is_json_but_no_order_is_invalid_and_says_where(shop: Shop) -> None:
    product = await shop.product()
    line = {"product_id": product, "quantity": 1}
    bodies: list[tuple[Any, str]] = [
        *((value, "") for value in NO_OBJECTS),
        ({}, "/currency"),
        *(
            ({**order_with(product), "currency": code}, "/currency")
            for code in ("usd", "US", "XXX", "", None, "USDX", 1)
        ),
        *((order_with(product, quantity=value), "/items/0/quantity") for value in NO_QUANTITIES),
        *(
            (order_with(product, unit_price=value), "/items/0/unit_price")
            for value in (0, -1, money.PRICE_MAX + 1, 2**63, 10**30, 1.0, False, "1")
        ),
        *((order_with(text), "/items/0/product_id") for text in ("", "x", "I" * 26, "8" + "0" * 25, "\u017f" * 26)),
        *((order_with(value), "/items/0/product_id") for value in (None, 1, ["x"])),  # type: ignore[arg-type]
        ({**order_with(product), "items": []}, "/items"),
        ({**order_with(product), "items": {}}, "/items"),
        ({**order_with(product), "items": [line] * 2001}, "/items"),
        ({**order_with(product), "items": [line, None]}, "/items/1"),
        ({**order_with(product), "more": 1}, "/more"),
        ({**order_with(product), "a/b~c": 1}, "/a~1b~0c"),
        (order_with(product, more=1), "/items/0/more"),
        *(
            ({**order_with(product), "payment_method": text}, "/payment_method")
            for text in ("card", "", "pm_\x00", "pm_\n", "pm_" + "x" * 198, 1)
        ),
        *(({**order_with(product), "shipping_address_id": t}, "/shipping_address_id") for t in ("", "\x00", "x" * 201)),
        *(({**order_with(product), "user_id": t}, "/user_id") for t in ("", "me", str(uuid.uuid4()) + "\n", "\x00")),
        *(
            ({**order_with(product), "adjustments": [{"kind": "tax", "label": "x", "amount": amount}]}, "/adjustments")
            for amount in (2**53, -(2**53), 1.0, "1", True)
        ),
    ]
    for body, at in bodies:
        response = await post(shop, json.dumps(body))
        assert refused(response) == "422 invalid", body
        assert response.json()["errors"][0]["at"].startswith(at), response.text
    assert await shop.stock(product) == (100, 0)


async def test_the_last_of_duplicate_members_counts(shop: Shop) -> None:
    product = await shop.product()
    line = f'{{"product_id": "{product}", "quantity": 0, "quantity": 2}}'
    body = f'{{"currency": "EUR", "currency": "USD", "items": [{line}]}}'
    response = await post(shop, body)
    assert (response.status_code, response.json()["items"][0]["quantity"]) == (201, 2)


async def test_texts_of_any_letters_come_back_as_they_were(shop: Shop) -> None:
    text = "\u007f\u0085\u2028\ufffe\U0010ffff\u202e\u00e9e\u0301" + "\U0001f600" * 190
    order = await shop.placed(shipping_address_id=text)
    assert order["shipping_address_id"] == text
    shipped = await shop.command(order, "ship", {"tracking": text})
    assert shipped.json()["tracking"] == text
    assert (await shop.get(f"/v1/orders/{order['order_id']}")).content == shipped.content


async def test_commands_with_bodies_that_mean_nothing_are_invalid(shop: Shop) -> None:
    order = await shop.placed()
    bodies: dict[str, list[Any]] = {
        "cancel": [[], None, {"reason": 1}, {"reason": ""}, {"reason": "staff\x00"}, {"x": 1}],
        "ship": [1, {"tracking": "\x00"}, {"tracking": ""}, {"tracking": "x" * 201}],
        "deliver": ["", {"x": None}],
        "return": [[], {"x": 1}, {"tracking": "T"}],
    }
    part = {"line_no": 1, "quantity": 1}
    wrong = ({"quantity": 0}, {"quantity": -1}, {"quantity": 10**6 + 1}, {"quantity": "1"}, {"line_no": 0}, {"x": 1})
    for command in ("ship", "return"):
        lists: list[Any] = [{}, [], [{}], [1], [part, part], [part] * 2001]
        bodies[command] += [{"items": each} for each in lists]
        bodies[command] += [{"items": [part | each]} for each in wrong]
    for command, each in bodies.items():
        for body in each:
            response = await post(shop, json.dumps(body), path=f"/v1/orders/{order['order_id']}/{command}")
            assert refused(response) == "422 invalid", body


async def test_two_thousand_lines_with_the_longest_names_are_placed_and_readable(shop: Shop) -> None:
    name = "\U0001f6cd" * 200
    products = [await shop.product(name=name, price=money.PRICE_MAX // 1000, stock=10) for _ in range(20)]
    response = await shop.place(*((product, 1) for product in products * 100), key="k")
    assert refused(response) == "409 out_of_stock"
    await shop.owner.execute("UPDATE orders.inventory SET on_hand = 100")
    response = await shop.place(*((product, 1) for product in products * 100), key="k")
    assert response.status_code == 201
    assert len(response.content) > 2000 * 800
    order = response.json()
    assert (order["item_count"], order["items"][1999]["name"]) == (2000, name)
    assert (await shop.get(f"/v1/orders/{order['order_id']}")).content == response.content
    assert (await shop.place(*((product, 1) for product in products * 100), key="k")).content == response.content
    assert (await shop.get("/v1/orders")).json()["data"] == [order]
    assert (await shop.command(order, "ship")).json()["items"][1999]["shipped_quantity"] == 1


# --- headers, paths, queries


async def test_keys_that_are_no_keys_are_missing_and_keys_at_the_bound_are_taken(shop: Shop) -> None:
    body = json.dumps(order_with(await shop.product()))
    missing: list[bytes] = [
        b" ",
        b'""',
        b"k" * 256,
        b'"' + b"k" * 256 + b'"',
        b"a b",
        "é".encode(),
        b"\xff",
        b"k\x7f",
        b"\t",
    ]
    for key in missing:
        assert refused(await post(shop, body, key=key)) == "400 key_missing", key
    for key in (b"k" * 255, b'"' + b"q" * 255 + b'"', b'"', b"'; DROP TABLE orders --".replace(b" ", b"+")):
        assert (await post(shop, body, key=key)).status_code == 201, key


async def test_an_if_match_that_is_no_version_matches_none(shop: Shop) -> None:
    order = await shop.placed()
    garbage = ["abc", "*", 'W/"1"', '"1","2"', "1", '""', '"0"', '"01"', '"-1"', '"1', '"9999999999"', '"\xb9"', '"1"x']
    for tag in garbage:
        headers = {"Idempotency-Key": "k", "If-Match": tag} | shop.auth("orders:fulfil")
        response = await shop.client.post(
            f"/v1/orders/{order['order_id']}/ship",
            json={},
            headers=[(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
        )
        assert refused(response) == "412 version_mismatch", tag
    response = await shop.client.post(
        f"/v1/orders/{order['order_id']}/ship",
        json={},
        headers={**shop.auth("orders:fulfil"), "Idempotency-Key": "k", "If-Match": ""},
    )
    assert refused(response) in {"412 version_mismatch", "428 if_match_missing"}


async def test_headers_full_of_garbage_do_no_harm(shop: Shop) -> None:
    order = await shop.placed()
    for name in (
        *("authorization", "if-none-match", "traceparent", "x-request-id", "host", "content-type", "content-length"),
        *("accept", "x-forwarded-for", "x-forwarded-proto", "cookie", "range", "origin", "forwarded"),
    ):
        for value in (b"", b"\xff\xfe", b"[", b"*" * 10_000, b"00-" + b"0" * 32, b"-1", b"1_0", b"\xb2", b"9" * 5000):
            headers = {b"authorization": shop.auth()["Authorization"].encode(), name.encode(): value}
            path = f"/v1/orders/{order['order_id']}"
            judged(await shop.client.get(path, headers=list(headers.items())))
            judged(await shop.client.post(path + "/cancel", headers=list(headers.items())))
            judged(await shop.client.get("/v1/orders/", headers=list(headers.items())))


async def test_queries_full_of_garbage_are_refused_or_read(shop: Shop) -> None:
    order = await shop.placed()
    garbage = [
        *(
            "limit=1&limit=2",
            "limit=1&limit=x",
            "limit",
            "limit=",
            "=",
            "&&&",
            "%",
            "%00",
            "%ff=%fe",
            "limit=%00",
            "a" * 5000,
        ),
        *(
            "status=confirmed%00",
            "cursor=%00",
            "user_id=%00",
            "created_from=%00",
            "limit=1;status=x",
            "min_version=1%00",
        ),
        *("cursor[]=1", "limit=1e1", "limit=+1", "limit=%D9%A3", "after_version=1_0", "x=" + "1" * 50_000, "%C3%28=1"),
        *("limit=" + "9" * 5000, "min_version=" + "9" * 5000, "created_to=" + "9" * 5000, "cursor=" + "A" * 50_000),
    ]
    for path in ("/v1/orders", f"/v1/orders/{order['order_id']}", f"/v1/orders/{order['order_id']}/events"):
        for query in garbage:
            judged(await shop.client.get(f"{path}?{query}", headers=shop.auth()))


# --- a real server on a socket


def head(served: Served, line: str, **headers: str) -> bytes:
    """A request's head; the server is asked to close afterwards, so that all it says can be read to the end."""
    sent = {
        "Host": "orders",
        "Authorization": served.shop.auth()["Authorization"],
        "Idempotency-Key": "k",
        "Content-Type": "application/json",
        "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return (line + "\r\n" + "".join(f"{n}: {v}\r\n" for n, v in sent.items()) + "\r\n").encode("latin-1")


def status_and_code(raw: bytes) -> str:
    """Of a raw response."""
    top, _, body = raw.partition(b"\r\n\r\n")
    status = top.split(b" ", 2)[1].decode()
    return f"{status} {json.loads(body)['code']}" if b"application/problem+json" in top else status


async def test_ten_megabytes_are_refused_and_the_client_gets_to_read_it(served: Served) -> None:
    body = b" " * 10_000_000
    headers = {**served.shop.auth(), "Idempotency-Key": "k", "Content-Type": "application/json"}

    async def chunks() -> Any:
        for _ in range(100):
            yield body[:100_000]

    for content in (body, chunks()):
        response = await served.shop.client.post("/v1/orders", content=content, headers=headers)
        assert refused(response) == "413 body_too_large"
    response = await served.shop.client.post("/v1/orders", content=body, headers=served.shop.auth("profile"))
    assert refused(response) == "403 scope_missing"
    assert refused(await served.shop.client.post("/v1/orders", content=body)) == "401 unauthenticated"
    assert (await served.shop.client.get("/healthz")).status_code == 200


async def test_chunked_bodies_are_read_up_to_the_limit_and_not_beyond(served: Served) -> None:
    start = head(served, "POST /v1/orders HTTP/1.1", Transfer_Encoding="chunked")
    at, over = BODY_BYTES_MAX, BODY_BYTES_MAX + 1
    for size, expected in ((at, "400 malformed_json"), (over, "413 body_too_large"), (2, "422 invalid")):
        content = b" " * size if size > 2 else b"{}"
        halves = [part for part in (content[: size // 2], content[size // 2 :]) if part]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in halves)
        assert status_and_code(await served.raw(start + body + b"0\r\n\r\n")) == expected


async def test_a_content_length_that_lies_is_answered_or_hung_up_on(served: Served) -> None:
    line = "POST /v1/orders HTTP/1.1"
    short = await served.raw(head(served, line, Content_Length="2") + b"{}" + b"x" * 1000)
    assert status_and_code(short) in {"422 invalid", "400"}
    for lie in ("-1", "x", "1, 2", "9" * 30, "0x10", "+2", ""):
        answer = await served.raw(head(served, line, Content_Length=lie) + b"{}")
        assert status_and_code(answer).split()[0] in {"400", "413", "415", "422"}, lie
    both = head(served, line, Content_Length="2", Transfer_Encoding="chunked") + b"2\r\n{}\r\n0\r\n\r\n"
    assert status_and_code(await served.raw(both)).split()[0] in {"400", "422"}


async def test_a_client_that_goes_away_before_its_body_is_there_is_no_failure_of_ours(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    said = asyncio.Event()

    async def until_read() -> None:
        # Two requests on: whatever the first had to be given, it has been given.
        for _ in range(2):
            assert (await served.shop.client.get("/v1/orders", headers=served.shop.auth())).status_code == 200
        said.set()

    await served.raw(head(served, "POST /v1/orders HTTP/1.1", Content_Length="100") + b"{", then=until_read)
    assert said.is_set()
    output = ""
    async with asyncio.timeout(60):
        while "http.client_gone" not in output:
            await asyncio.sleep(0.01)
            output += capsys.readouterr().out
    assert "http.failed" not in output
    assert "Traceback" not in output


async def test_raw_bytes_in_paths_and_queries_are_refused_or_read(served: Served) -> None:
    order_id = ids.to_text(ids.new_order_key(served.shop.buyer, clock.now()).order_id)
    for target in (
        *(
            "/v1/orders/%00",
            "/v1/orders/%ff",
            "/v1/orders/%C3%28",
            "/v1/orders/a%2Fb",
            "/v1/orders/%0d%0aX:1",
            "/v1/orders%0A",
        ),
        *(
            "//v1/orders",
            "/v1//orders",
            "/v1/../v1/orders",
            "/v1/orders/\xff",
            "/\xff\xfe",
            "/v1/orders?\xff=\xfe",
            "*",
            "x",
        ),
        *(
            f"/v1/orders/{order_id}?\xff",
            f"/v1/orders/{order_id}?min_version=\xb2",
            "http://x/v1/orders",
            "//[",
            "/?#[",
            "/#",
        ),
        *(f"/v1/orders/{order_id}%0A", "/v1/orders/" + "A" * 20_000, "/v1/orders/\u0131".encode().decode("latin-1")),
    ):
        for method in ("GET", "POST", "HEAD", "OPTIONS", "TRACE"):
            for host in ("orders", "[", "a\xff", ""):
                answer = await served.raw(head(served, f"{method} {target} HTTP/1.1", Host=host))
                assert answer.split(b" ", 2)[1][:1] in b"234", (method, target, host, answer[:300])


# --- anything at all

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = ("currency", "items", "payment_method", "shipping_address_id", "adjustments", "user_id")
LINES = st.lists(st.dictionaries(st.sampled_from(("product_id", "quantity", "unit_price")), JSON), max_size=3)
ORDERS = st.dictionaries(st.sampled_from(MEMBERS), JSON | LINES)
bounded = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@bounded
@given(
    body=JSON | ORDERS | ORDERS.map(lambda order: {"currency": "USD", **order}), path=st.sampled_from(("", "/x/ship"))
)
async def test_any_json_is_a_success_or_a_known_refusal(shop: Shop, body: Any, path: str) -> None:
    try:
        content = json.dumps(body).encode()
    except UnicodeEncodeError:  # a lone surrogate
        content = json.dumps(body, ensure_ascii=True).encode()
    await post(shop, content, path="/v1/orders" + path)


@bounded
@given(content=st.binary(max_size=200), media_type=st.sampled_from(("application/json", "text/plain", "")))
async def test_any_bytes_are_a_known_refusal(shop: Shop, content: bytes, media_type: str) -> None:
    headers = {**shop.auth(), "Idempotency-Key": "k", "Content-Type": media_type}
    assert judged(await shop.client.post("/v1/orders", content=content, headers=headers)).status_code >= 400


@bounded
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    query=st.dictionaries(
        st.sampled_from(("limit", "cursor", "status", "created_from", "created_to", "user_id", "min_version", "x")),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
        | st.datetimes().map(str)
        | st.integers().map(str),
    ),
)
async def test_any_path_and_query_are_a_success_or_a_known_refusal(
    shop: Shop, text: str, query: dict[str, str]
) -> None:
    segment = httpx.QueryParams({"x": text}).__str__()[2:].replace("+", "%20")
    for path in ("/v1/orders", f"/v1/orders/{segment}", f"/v1/orders/{segment}/events", f"/v1/inventory/{segment}"):
        judged(await shop.client.get(path, params=query, headers=shop.auth("orders:read orders:read:any")))
