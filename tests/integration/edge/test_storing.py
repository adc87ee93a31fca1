"""What the edge keeps, what it never keeps, and that nothing a client sends changes what others are shown."""

import asyncio
from itertools import product

from tests.edge import kept, public
from tests.integration.edge.conftest import Scene

LISTING = "/v1/products"


NOT_AS_AGREED = (
    {"Cache-Control": "private, no-store"},
    {"Cache-Control": f"{public()}, private"},
    {"Cache-Control": "no-store"},
    {"Cache-Control": "public, max-age=86400"},  # longer than the policy of the route allows
    {"Cache-Control": public((60, 3000))},
    {"Cache-Control": "max-age=60", "Expires": "Thu, 31 Dec 2099 00:00:00 GMT"},
    {"Cache-Control": "no-cache", "X-Accel-Expires": "60"},
    {"Set-Cookie": "session=1"},
    {"Vary": "*"},
)


async def test_what_is_not_public_as_agreed_is_never_kept(scene: Scene) -> None:
    agreed = dict(scene.catalog.headers)
    for number, headers in enumerate(NOT_AS_AGREED):
        scene.catalog.headers = agreed | headers
        scene.catalog.requests.clear()
        for asked in range(1, 4):
            scene.edge.client.cookies.clear()  # one that was set would be sent
            response = await scene.edge.get(f"{LISTING}?{number}")
            assert (response.status_code, kept(response)) == (200, "fwd=uri-miss"), headers
            assert len(scene.catalog.requests) == asked, headers


async def test_only_an_answer_of_200_is_kept(scene: Scene) -> None:
    for status in (404, 410, 301, 500, 503):
        scene.catalog.status = status
        scene.catalog.requests.clear()
        for asked in range(1, 4):
            assert (await scene.edge.get(f"{LISTING}?{status}")).status_code == status
            assert len(scene.catalog.requests) == asked, status


async def test_who_shows_who_they_are_asks_the_origin_and_what_they_get_is_not_kept(scene: Scene) -> None:
    # nginx takes "0" for no, unless it is told otherwise
    for header, value in product(("Authorization", "Cookie"), ("x", "0")):
        target = f"{LISTING}?{header}={value}"
        scene.catalog.body = b"of somebody"
        response = await scene.edge.get(target, **{header: value})
        assert (response.content, kept(response)) == (b"of somebody", "fwd=bypass")
        scene.catalog.body = b"of all"
        response = await scene.edge.get(target)
        assert (response.content, kept(response)) == (b"of all", "fwd=uri-miss")
        scene.catalog.body = b"of somebody"
        assert (await scene.edge.get(target, **{header: value})).content == b"of somebody"
        response = await scene.edge.get(target)
        assert (response.content, kept(response)) == (b"of all", "hit")


async def test_every_query_string_is_kept_by_itself(scene: Scene) -> None:
    targets = [LISTING, f"{LISTING}?limit=1", f"{LISTING}?limit=2", f"{LISTING}?cursor=a&limit=2", "/v1/products/1"]
    for target in targets:
        scene.catalog.body = target.encode()
        assert kept(await scene.edge.get(target)) == "fwd=uri-miss"
    for target in targets:
        response = await scene.edge.get(target)
        assert (response.content, kept(response)) == (target.encode(), "hit")
    assert [request[":target"] for request in scene.catalog.requests] == targets


async def test_no_header_of_a_client_reaches_what_others_are_shown(scene: Scene) -> None:
    poison = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "666",
        "X-Forwarded-For": "evil.example",
        "X-Forwarded-Proto": "evil",
        "X-Real-IP": "evil.example",
        "Forwarded": "host=evil.example",
        "X-Request-Id": "evil",
        "X_Forwarded_Host": "evil.example",
        "Upgrade": "h2c",
    }
    response = await scene.edge.client.get(LISTING, headers=poison)
    assert response.headers["x-request-id"] == "evil", "it is their own"
    (seen,) = scene.catalog.requests
    assert seen["x-request-id"] == "evil"
    assert (seen["host"], seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("catalog", "127.0.0.1", "http")
    assert not {"x-forwarded-host", "x-forwarded-port", "x-real-ip", "forwarded", "x_forwarded_host", "upgrade"} & set(
        seen
    )
    response = await scene.edge.get(LISTING)
    assert (kept(response), len(scene.catalog.requests)) == ("hit", 1)
    assert "evil" not in str(response.headers)


async def test_a_request_id_that_could_be_misread_is_replaced(scene: Scene) -> None:
    response = await scene.edge.get(LISTING, X_Request_Id="two words")
    assert len(response.headers["x-request-id"]) == 32
    assert scene.catalog.requests[0]["x-request-id"] == response.headers["x-request-id"]


async def test_timings_and_request_id_are_those_of_the_request_that_is_answered(scene: Scene) -> None:
    scene.catalog.headers |= {"Server-Timing": "db;dur=1.000", "X-Request-Id": "of the origin"}
    first, second = await scene.edge.get(LISTING), await scene.edge.get(LISTING)
    assert (kept(first), first.headers["server-timing"]) == ("fwd=uri-miss", "db;dur=1.000")
    assert (kept(second), "server-timing" in second.headers) == ("hit", False)
    assert len({first.headers["x-request-id"], second.headers["x-request-id"], "of the origin"}) == 3


async def test_the_date_is_that_of_the_answer_that_was_kept(scene: Scene) -> None:
    scene.catalog.headers |= {"Date": "Sun, 01 Nov 2026 00:00:00 GMT"}
    for expected in ("fwd=uri-miss", "hit"):
        response = await scene.edge.get(LISTING)
        assert (kept(response), response.headers.get_list("date")) == (expected, ["Sun, 01 Nov 2026 00:00:00 GMT"])


async def test_a_client_that_has_it_is_told_so_from_what_is_kept(scene: Scene) -> None:
    scene.catalog.headers |= {"ETag": '"7"'}
    await scene.edge.get(LISTING)
    same = await scene.edge.get(LISTING, If_None_Match='"7"')
    assert (same.status_code, same.content, kept(same), same.headers["etag"]) == (304, b"", "hit", '"7"')
    other = await scene.edge.get(LISTING, If_None_Match='"6"')
    assert (other.status_code, other.content) == (200, b"first")
    assert len(scene.catalog.requests) == 1
    assert "if-none-match" not in scene.catalog.requests[0]


async def test_the_first_client_s_conditions_and_ranges_do_not_shape_what_is_kept(scene: Scene) -> None:
    scene.catalog.headers |= {"ETag": '"7"', "Content-Length": "5", "Accept-Ranges": "bytes"}
    part = await scene.edge.get(LISTING, Range="bytes=1-2", If_None_Match='"6"')
    assert (part.status_code, part.content) == (206, b"ir")
    assert not {"range", "if-none-match"} & set(scene.catalog.requests[0])
    whole = await scene.edge.get(LISTING)
    assert (whole.status_code, whole.content, kept(whole)) == (200, b"first", "hit")
    part = await scene.edge.get(LISTING, Range="bytes=3-")
    assert (part.status_code, part.content) == (206, b"st")
    assert (await scene.edge.get(LISTING, Range="bytes=9-")).status_code == 416
    assert len(scene.catalog.requests) == 1


async def test_head_is_answered_from_what_get_gives(scene: Scene) -> None:
    head = await scene.edge.client.head(LISTING)
    assert (head.status_code, head.content, kept(head)) == (200, b"", "fwd=uri-miss")
    response = await scene.edge.get(LISTING)
    assert (response.content, kept(response)) == (b"first", "hit")
    assert kept(await scene.edge.client.head(LISTING)) == "hit"
    assert [request[":method"] for request in scene.catalog.requests] == ["GET"]


async def test_a_write_reaches_the_origin_with_its_conditions_whatever_is_kept(scene: Scene) -> None:
    path = "/v1/products/01JD5Q0000E2WXGF4K4Z7D3M5T"
    await scene.edge.get(path)
    put = await scene.edge.client.put(path, content=b"{}", headers={"If-Match": '"1"'})
    assert put.status_code == 200
    assert scene.catalog.requests[1][":method"] == "PUT"
    assert scene.catalog.requests[1]["if-match"] == '"1"'
    assert kept(await scene.edge.get(path)) == "hit", "nothing is purged: it is shown for its time"
    for method in ("PURGE", "BAN"):
        await scene.edge.client.request(method, path)
    assert kept(await scene.edge.get(path)) == "hit"


async def test_other_services_answers_are_not_kept_even_if_they_said_so(scene: Scene) -> None:
    scene.orders.headers["Cache-Control"] = public()
    for number in range(1, 3):
        assert kept(await scene.edge.get("/v1/orders")) == "fwd=bypass"
        assert len(scene.orders.requests) == number


async def test_an_origin_that_does_not_answer_holds_up_no_other(scene: Scene) -> None:
    await scene.edge.get(f"{LISTING}?kept=1")
    scene.catalog.open.clear()
    waiting = [asyncio.create_task(scene.edge.get(f"{LISTING}?{number}")) for number in range(100)]
    while len(scene.catalog.requests) < 101:
        await asyncio.sleep(0.01)
    assert (await scene.edge.get("/v1/orders")).content == b"first"
    assert kept(await scene.edge.get(f"{LISTING}?kept=1")) == "hit"
    assert not any(task.done() for task in waiting)
    scene.catalog.open.set()
    assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}
