"""What comes in: headers, bodies and parameters, each refused with a clear problem."""

import re
from functools import cache
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from services.common.errors import DomainError, invalid
from services.common.openapi import JSON

HEADERS: Final = "headers"  # in the state of a request's scope: {name in lower case: value}
BODY_BYTES_MAX: Final = 256 * 1024
DRAIN_BYTES_MAX: Final = 32 * 1024 * 1024  # read and thrown away after a refusal, so that the client gets to see it
_DIGITS = re.compile(r"[0-9]+\Z")
M = TypeVar("M", bound=BaseModel)


def header(request: Request, name: bytes) -> str | None:
    """The header of that name, in lower case; of several the last. Found at once, where Starlette walks through all."""
    value = request.scope["state"][HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


async def read_body(request: Request, *, may_be_empty: bool = False, media_types: tuple[str, ...] = (JSON,)) -> bytes:
    """The body, which is said to be of one of these types. 413 `body_too_large`, 415 `media_type`."""
    body = bytearray()
    declared = request.headers.get("content-length", "")
    too_large = _DIGITS.match(declared) is not None and (len(declared) > 9 or int(declared) > BODY_BYTES_MAX)
    drained = 0
    async for chunk in request.stream():
        drained += len(chunk)
        too_large = too_large or drained > BODY_BYTES_MAX
        if not too_large:
            body += chunk
        elif drained > DRAIN_BYTES_MAX:
            break
    if too_large:
        raise DomainError(
            "body_too_large", 413, f"A body has at most {BODY_BYTES_MAX} bytes.", headers={"Connection": "close"}
        )
    if not body and may_be_empty:
        return b""
    require_media_type(request, *media_types)
    return bytes(body)


def require_media_type(request: Request, *media_types: str) -> None:
    """Pass when the body is said to be of one of these types. 415 `media_type`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in media_types:
        # RFC 9110, section 15.5.16; W3C Linked Data Platform, section 7.1; RFC 5789, section 3.1
        taken = {"POST": "Accept-Post", "PATCH": "Accept-Patch"}.get(request.method, "Accept")
        raise DomainError("media_type", 415, f"Send {media_types[0]}.", headers={taken: ", ".join(media_types)})


def parsed_json(body: bytes) -> Any:
    """What `body` says.

    400 `malformed_json` (also too deep, a number no double holds, a lone surrogate, bytes that are not UTF-8).
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DomainError("malformed_json", 400, f"The body is not JSON: {error.msg}.") from error


def validated(model: type[M], value: object) -> M:
    """`value` as a `model`. 422 `invalid` with the place and the reason of every fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        errors = [{"at": "".join(map(_pointer, fault["loc"])), "reason": fault["msg"]} for fault in faults[:20]]
        raise invalid("The request is not valid.", errors=errors) from None


def parameters(model: type[M], request: Request) -> M:
    """The query string as a `model`. 422 `invalid` as validated."""
    given = request.scope["query_string"] or _asks(model)
    return validated(model, dict(request.query_params)) if given else _without(model)


@cache
def _asks(model: type[BaseModel]) -> bool:
    """Whether it has parameters that must be given."""
    return any(field.is_required() for field in model.model_fields.values())


@cache
def _without(model: type[M]) -> M:
    """A model of no parameters; whoever is given it only reads it."""
    return validated(model, {})


def _pointer(member: str | int) -> str:
    return "/" + str(member).replace("~", "~0").replace("/", "~1")  # RFC 6901, section 3
