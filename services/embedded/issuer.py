"""Process `token-issuer`: an OpenID Connect issuer for development, with just the client credentials grant.

It gives any client any scope it asks for, and with the parameter `sub` (not part of OAuth) a token for any user.
So it takes the place of a real identity provider on a developer's machine and nowhere else.
"""

import base64
import re
import secrets
from pathlib import Path
from urllib.parse import parse_qsl, unquote_plus

import structlog
import uvicorn
from pydantic import Field, SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.common.log import configure
from services.common.settings import ProcessSettings
from services.embedded.keys import DEVELOPMENT_CLIENT, clients, mint, signing_key

_BODY_BYTES_MAX = 8 * 1024  # a token request has a few hundred
_LIFETIME_SECONDS = 3600
_KEYS_MAX_AGE_SECONDS = 60  # the key changes only when someone deletes its file
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*")  # RFC 6749, section 3.3
_SUBJECT_CHARACTERS_MAX = 255  # OpenID Connect Core, section 2

_log = structlog.get_logger()


class IssuerSettings(ProcessSettings):
    """What `token-issuer` may be told besides."""

    port: int = Field(default=8004, ge=0, le=65535, description="port the HTTP server binds")
    home: Path = Field(default=Path(".local"), description="directory whose `issuer/` holds key and clients")
    client_secret: SecretStr = Field(
        default=SecretStr(""), description="of the development client; default: the one in its home"
    )


class _Refusal(Exception):  # noqa: N818  a refusal, named as DomainError's docstring has it
    """An error of RFC 6749, section 5.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(error, description)
        self.error = error
        self.description = description
        self.status = status


def create_app(home: Path, issuer_url: str, audience: str, client_secret: str = "") -> Starlette:
    """Return the issuer; key and development client exist afterwards, with `client_secret` if that is given."""
    secret_by_client = clients(home) | ({DEVELOPMENT_CLIENT: client_secret} if client_secret else {})
    jwks = {"keys": [signing_key(home).as_dict(private=False)]}
    base = issuer_url.removesuffix("/")
    discovery = {
        "issuer": issuer_url,
        "jwks_uri": f"{base}/jwks.json",
        "token_endpoint": f"{base}/token",
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }
    cached = {"Cache-Control": f"public, max-age={_KEYS_MAX_AGE_SECONDS}"}

    async def get_discovery(_: Request) -> JSONResponse:
        return JSONResponse(discovery, headers=cached)

    async def get_jwks(_: Request) -> JSONResponse:
        return JSONResponse(jwks, headers=cached)

    async def get_health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def post_token(request: Request) -> JSONResponse:
        form = await _form(request)
        client_id = _authenticate(request.headers.get("authorization"), form, secret_by_client)
        if "grant_type" not in form:
            raise _Refusal("invalid_request", "grant_type is missing.")
        if form["grant_type"] != "client_credentials":
            raise _Refusal("unsupported_grant_type", "Only client_credentials is supported.")
        scope = form.get("scope", "")
        if scope and not _SCOPE.fullmatch(scope):
            raise _Refusal("invalid_scope", "scope is not a list of scopes separated by single spaces.")
        sub = form.get("sub", client_id)
        if len(sub) > _SUBJECT_CHARACTERS_MAX or not sub.isprintable():
            raise _Refusal("invalid_request", f"sub has to be 1 to {_SUBJECT_CHARACTERS_MAX} printable characters.")
        token = mint(
            home,
            issuer=issuer_url,
            audience=audience,
            sub=sub,
            scope=scope,
            lifetime_seconds=_LIFETIME_SECONDS,
            client_id=client_id,
        )
        _log.info("token_issued", client=client_id, sub=sub, scope=scope)
        body = {"access_token": token, "token_type": "Bearer", "expires_in": _LIFETIME_SECONDS, "scope": scope}
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    return Starlette(
        routes=[
            Route("/.well-known/openid-configuration", get_discovery),
            Route("/jwks.json", get_jwks),
            Route("/token", post_token, methods=["POST"]),
            Route("/healthz", get_health),
        ],
        exception_handlers={_Refusal: _answer_refusal},
    )


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = IssuerSettings()
    configure("token-issuer", settings.log_level)
    app = create_app(settings.home, settings.issuer_url, settings.audience, settings.client_secret.get_secret_value())
    _log.info("token_issuer_starting", issuer=settings.issuer_url, host=settings.host, port=settings.port)
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, access_log=False, server_header=False)


async def _form(request: Request) -> dict[str, str]:
    """Return the form's parameters; one without a value counts as left out (RFC 6749, section 3.2)."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise _Refusal("invalid_request", "The body has to be application/x-www-form-urlencoded.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_BYTES_MAX:
            raise _Refusal("invalid_request", f"The body has more than {_BODY_BYTES_MAX} bytes.", 413)
    try:
        pairs = parse_qsl(body.decode("utf-8"), errors="strict")
    except ValueError as error:
        raise _Refusal("invalid_request", "The body is not UTF-8.") from error
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _Refusal("invalid_request", "A parameter is repeated.")
    return form


def _authenticate(authorization: str | None, form: dict[str, str], secret_by_client: dict[str, str]) -> str:
    """Return the id of the client that knows its secret (RFC 6749, section 2.3.1), or refuse with 401."""
    if authorization is None:
        client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
    elif "client_secret" in form:
        raise _Refusal("invalid_request", "Use one way of client authentication.")
    else:
        client_id, secret = _basic_credentials(authorization)
    # An unknown client is compared too, so that the time taken does not tell which clients exist.
    expected = secret_by_client.get(client_id, "")
    same = secrets.compare_digest(expected.encode(), secret.encode())
    if not (same and expected):
        raise _Refusal("invalid_client", "The client is unknown or its secret wrong.", 401)
    return client_id


def _basic_credentials(authorization: str) -> tuple[str, str]:
    scheme, _, encoded = authorization.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except ValueError:
        decoded = ""
    if scheme.lower() != "basic" or ":" not in decoded:
        raise _Refusal("invalid_client", "The Authorization header is not Basic client_id:client_secret.", 401)
    client_id, _, secret = decoded.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)


async def _answer_refusal(_: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, _Refusal)  # noqa: S101  Starlette types handlers for any exception
    headers = {"Cache-Control": "no-store"}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="token-issuer", charset="UTF-8"'
    return JSONResponse(
        {"error": refusal.error, "error_description": refusal.description}, refusal.status, headers=headers
    )


if __name__ == "__main__":
    main()
