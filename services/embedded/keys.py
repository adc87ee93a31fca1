"""Key and client of the embedded token issuer, the tokens it signs, and the secret of the payments sandbox.

For development: the files hold secrets.
"""

import os
import secrets
import tempfile
import time
from pathlib import Path

import orjson
from joserfc import jwt
from joserfc.jwk import ECKey

DEVELOPMENT_CLIENT = "orders-cli"


def signing_key(home: Path) -> ECKey:
    """Return the ES256 key of `<home>/issuer/key.json`, the same for all processes; its kid is the RFC 7638 thumbprint.

    The first call makes it, mode 0600.
    """
    file = home / "issuer" / "key.json"
    if not file.exists():
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, auto_kid=True)
        _create(file, orjson.dumps(key.as_dict(private=True)))
    return ECKey.import_key(orjson.loads(file.read_bytes()))


def clients(home: Path) -> dict[str, str]:
    """Return secrets by client id from `<home>/issuer/clients.json`; the first call makes one for `orders-cli`."""
    file = home / "issuer" / "clients.json"
    if not file.exists():
        _create(file, orjson.dumps({DEVELOPMENT_CLIENT: secrets.token_urlsafe(32)}))
    found: dict[str, str] = orjson.loads(file.read_bytes())
    return found


def callback_secret(home: Path) -> str:
    """Return the secret of `<home>/payments-sandbox/callback-secret`; the first call makes it."""
    file = home / "payments-sandbox" / "callback-secret"
    if not file.exists():
        _create(file, secrets.token_urlsafe(32).encode())
    return file.read_text()


def mint(
    home: Path,
    *,
    issuer: str,
    audience: str,
    sub: str,
    scope: str,
    lifetime_seconds: int = 3600,
    now: float | None = None,
    client_id: str = DEVELOPMENT_CLIENT,
) -> str:
    """Return a signed access token (RFC 9068) for `sub` with the scopes, which are separated by spaces."""
    key = signing_key(home)
    issued_at = int(time.time() if now is None else now)
    claims: dict[str, str | int] = {
        "iss": issuer,
        "aud": audience,
        "sub": sub,
        "client_id": client_id,
        "iat": issued_at,
        "exp": issued_at + lifetime_seconds,
        "jti": secrets.token_urlsafe(16),
    }
    if scope:
        claims["scope"] = scope
    return jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": key.kid}, claims, key)


def _create(file: Path, content: bytes) -> None:
    """Give the file this content unless it exists by then; nobody ever sees it half written."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        file.hardlink_to(draft)  # unlike a rename, it fails when another process was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
