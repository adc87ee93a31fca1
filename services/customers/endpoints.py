"""HTTP only: parse, call one command or query, set headers. `routes` says which path each of these answers.

Nobody's but the caller's own data is ever asked for: whose it is comes from the token, never from the request.
"""

from typing import Final
from uuid import UUID

from fastapi import Request, Response

from services.common import ids
from services.common.auth import Claims
from services.common.db_errors import TransientError
from services.common.errors import DomainError, not_found, unavailable
from services.common.http_conditional import etag, if_match_version, none_match
from services.common.http_request import parsed_json, read_body, validated
from services.common.http_response import JsonResponse
from services.common.idempotency import HEADER, key_from, request_hash
from services.common.openapi import JSON, MERGE_PATCH
from services.common.resources import Resources
from services.customers import addresses, answers, commands, queries, reads, schemas
from services.customers.addresses import Key, Written
from services.customers.domain import Profile
from services.customers.personal import Destination

PROFILE: Final = "profile"


class Context(Resources):
    """What the endpoints of this process work with."""

    orders_url: str


def context(request: Request) -> Context:
    """The context of the process that serves `request`."""
    found = request.app.state.context
    assert isinstance(found, Context)  # noqa: S101 # set by the lifespan of every process that has these routes
    return found


async def get_profile(request: Request, claims: Claims) -> Response:
    """GET /v1/me."""
    at = context(request)
    profile, answer = await reads.get_profile(at.database, at.cache, claims.user_id)
    headers = {"ETag": etag(profile.version), "X-Cache": answer.outcome}
    if answer.outcome == "hit":
        headers["Age"] = str(int(answer.age_seconds))
    if not none_match(request.headers.get("if-none-match"), profile.version):
        return Response(status_code=304, headers=headers)
    return JsonResponse(answers.profile_content(profile), headers=headers)


async def change_profile(request: Request, claims: Claims) -> Response:
    """PATCH /v1/me."""
    at = context(request)
    patch = validated(schemas.ProfilePatch, parsed_json(await read_body(request, media_types=(MERGE_PATCH, JSON))))
    if_match = if_match_version(request.headers.get("if-match"))
    if if_match is None:
        raise DomainError("if_match_missing", 428, 'Send If-Match with the version you have seen, for example "1".')

    async def written() -> Profile:
        profile = await commands.change_profile(
            at.database, claims.user_id, patch.model_dump(exclude_unset=True), if_match=if_match, now=at.now()
        )
        await _replaced(at, claims.user_id, profile.version)
        return profile

    profile = await at.writes.finish(written())
    return JsonResponse(answers.profile_content(profile), headers={"ETag": etag(profile.version)})


async def erase_customer(request: Request, claims: Claims) -> Response:
    """DELETE /v1/me."""
    at = context(request)

    async def written() -> None:
        await commands.erase(at.database, claims.user_id, now=at.now())
        # Whoever erased it first may have died before it could tell; to what version is not asked for.
        await _replaced(at, claims.user_id, 0)

    await at.writes.finish(written())
    return Response(status_code=204)


async def export_customer(request: Request, claims: Claims) -> Response:
    """GET /v1/me/export."""
    at = context(request)
    found = await queries.export(at.database, claims.user_id)
    return JsonResponse(answers.export_content(found, now=at.now(), orders_url=at.orders_url))


async def list_addresses(request: Request, claims: Claims) -> Response:
    """GET /v1/me/addresses."""
    found = await queries.list_addresses(context(request).database, claims.user_id)
    return JsonResponse({"data": [answers.address_content(address) for address in found], "next_cursor": None})


async def get_address(request: Request, claims: Claims) -> Response:
    """GET /v1/me/addresses/{address_id}."""
    found = await queries.get_address(context(request).database, claims.user_id, _address_id(request))
    return JsonResponse(answers.address_content(found))


async def add_address(request: Request, claims: Claims) -> Response:
    """POST /v1/me/addresses."""
    at = context(request)
    raw = await read_body(request)
    key = key_from(request.headers.get(HEADER))
    content = parsed_json(raw)
    destination = _destination(content)
    asked = Key(key, request_hash("POST", request.scope["path"], content))
    written = await at.writes.finish(
        addresses.add_address(at.database, claims.user_id, destination, asked, now=at.now())
    )
    return _written(written)


async def replace_address(request: Request, claims: Claims) -> Response:
    """PUT /v1/me/addresses/{address_id}."""
    at = context(request)
    destination = _destination(parsed_json(await read_body(request)))
    written = await at.writes.finish(
        addresses.replace_address(at.database, claims.user_id, _address_id(request), destination, now=at.now())
    )
    return _written(written)


async def retire_address(request: Request, claims: Claims) -> Response:
    """DELETE /v1/me/addresses/{address_id}."""
    at = context(request)
    await at.writes.finish(addresses.retire_address(at.database, claims.user_id, _address_id(request), now=at.now()))
    return Response(status_code=204)


async def get_health(_: Request) -> Response:
    """GET /healthz: the process runs."""
    return JsonResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    """GET /readyz: requests can be served; what is not as it should be stands in `warnings`."""
    at = context(request)
    try:
        await queries.look(at.database)
    except TransientError as error:
        raise unavailable("The database does not answer.") from error
    return JsonResponse({"status": "ok", "warnings": at.degraded()})


async def _replaced(at: Context, user_id: UUID, version: int) -> None:
    """No older profile is in the cache, if it answers; the relay, which is woken, says it again."""
    await at.after_commit({reads.cache_key(user_id): version})


def _destination(content: object) -> Destination:
    body = validated(schemas.AddressBody, content)
    return Destination(**body.model_dump() | {"lines": tuple(body.lines)})


def _written(written: Written) -> Response:
    """201 for an address that is new to the caller, and where it is; 200 for one that is there as they asked."""
    content = answers.address_content(written.address)
    if written.result == "unchanged":
        return JsonResponse(content)
    headers = {"Location": f"/v1/me/addresses/{content['address_id']}"}
    if written.result == "replayed":
        headers["Idempotency-Replayed"] = "true"
    return JsonResponse(content, status_code=201, headers=headers)


def _address_id(request: Request) -> UUID:
    try:
        return ids.from_text(request.path_params["address_id"])
    except ValueError:
        raise not_found() from None
