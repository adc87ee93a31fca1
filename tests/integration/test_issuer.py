import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.common.auth import TokenVerifier
from services.common.errors import DomainError
from services.embedded.issuer import create_app
from services.embedded.keys import DEVELOPMENT_CLIENT, clients, mint, signing_key

USER = "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"
FORM = "application/x-www-form-urlencoded"
OWN_SECRET = (DEVELOPMENT_CLIENT, "its own")  # stands for the secret, which is random
GRANT = {"grant_type": "client_credentials"}


@dataclass(frozen=True)
class Running:
    home: Path
    url: str
    secret: str

    def token(self, form: dict[str, str], **options: object) -> httpx.Response:
        auth = options.pop("auth", (DEVELOPMENT_CLIENT, self.secret))
        return httpx.post(f"{self.url}/token", data=form, auth=auth, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "ORDERS_HOME": str(home), "ORDERS_PORT": str(port), "ORDERS_ISSUER_URL": url}
    process = subprocess.Popen([sys.executable, "-m", "services.embedded.issuer"], env=environment)
    try:
        wait_until_healthy(url, process)
        yield Running(home, url, clients(home)[DEVELOPMENT_CLIENT])
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        except httpx.TransportError:
            assert process.poll() is None, "token-issuer ended"
            assert time.monotonic() < deadline, "token-issuer is not up"
            time.sleep(0.02)  # between two questions, not in their place
        else:
            return


async def verified(issuer: Running, token: str) -> tuple[str, set[str]]:
    verifier = TokenVerifier(issuer.url, "order-backend")
    try:
        claims = await verifier.verify(f"Bearer {token}")
    finally:
        await verifier.aclose()
    return claims.subject, set(claims.scopes)


async def test_token_of_the_client_credentials_grant_is_verified(issuer: Running) -> None:
    answer = issuer.token({**GRANT, "scope": "orders:read orders:write"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 3600, "orders:read orders:write")
    assert await verified(issuer, body["access_token"]) == (DEVELOPMENT_CLIENT, {"orders:read", "orders:write"})


async def test_secret_may_stand_in_the_body_and_sub_names_a_user(issuer: Running) -> None:
    form = {**GRANT, "client_id": DEVELOPMENT_CLIENT, "client_secret": issuer.secret, "sub": USER}
    answer = issuer.token(form, auth=None)
    assert await verified(issuer, answer.json()["access_token"]) == (USER, set())


async def test_minted_token_is_verified_and_one_for_another_audience_is_not(issuer: Running) -> None:
    def token(audience: str) -> str:
        return mint(issuer.home, issuer=issuer.url, audience=audience, sub=USER, scope="orders:read")

    assert await verified(issuer, token("order-backend")) == (USER, {"orders:read"})
    with pytest.raises(DomainError, match="unauthenticated"):
        await verified(issuer, token("another"))


@pytest.mark.parametrize(
    ("form", "auth", "status", "error"),
    [
        (GRANT, None, 401, "invalid_client"),
        (GRANT, (DEVELOPMENT_CLIENT, "wrong"), 401, "invalid_client"),
        (GRANT, (DEVELOPMENT_CLIENT, ""), 401, "invalid_client"),
        (GRANT, ("nobody", ""), 401, "invalid_client"),
        (GRANT, ("nobody", "\u00e9"), 401, "invalid_client"),
        ({**GRANT, "client_id": "nobody"}, None, 401, "invalid_client"),
        ({**GRANT, "client_secret": "x"}, OWN_SECRET, 400, "invalid_request"),
        ({}, OWN_SECRET, 400, "invalid_request"),
        ({"grant_type": ""}, OWN_SECRET, 400, "invalid_request"),
        ({"grant_type": ["client_credentials"] * 2}, OWN_SECRET, 400, "invalid_request"),
        ({"grant_type": "password"}, OWN_SECRET, 400, "unsupported_grant_type"),
        ({**GRANT, "scope": "a  b"}, OWN_SECRET, 400, "invalid_scope"),
        ({**GRANT, "scope": 'a"b'}, OWN_SECRET, 400, "invalid_scope"),
        ({**GRANT, "scope": "a\n"}, OWN_SECRET, 400, "invalid_scope"),
        ({**GRANT, "sub": "s" * 256}, OWN_SECRET, 400, "invalid_request"),
        ({**GRANT, "sub": "a\x00"}, OWN_SECRET, 400, "invalid_request"),
        ({**GRANT, "scope": "s" * 9000}, OWN_SECRET, 413, "invalid_request"),
    ],
)
def test_refusals_are_those_of_rfc_6749(
    issuer: Running, form: dict[str, str], auth: tuple[str, str] | None, status: int, error: str
) -> None:
    answer = issuer.token(form) if auth == OWN_SECRET else issuer.token(form, auth=auth)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get("www-authenticate", "").startswith("Basic") == (status == 401)


@pytest.mark.parametrize("authorization", ["", "Basic", "Basic !", "Basic eA==", "Bearer x", "Basic /w=="])
def test_malformed_basic_credentials_are_401(issuer: Running, authorization: str) -> None:
    answer = issuer.token(GRANT, auth=None, headers={"Authorization": authorization})
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("media_type", "body"),
    [("application/json", b"{}"), (FORM, b"\xff"), (FORM, b"scope=%ff")],
)
def test_body_that_is_no_form_is_refused(issuer: Running, media_type: str, body: bytes) -> None:
    answer = httpx.post(f"{issuer.url}/token", content=body, headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_published_key_is_public_and_cacheable(issuer: Running) -> None:
    answer = httpx.get(httpx.get(f"{issuer.url}/.well-known/openid-configuration").json()["jwks_uri"])
    assert answer.headers["cache-control"] == "public, max-age=60"
    (key,) = answer.json()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "use", "alg", "kid"}
    assert key["kid"] == signing_key(issuer.home).thumbprint()


def test_files_are_their_owners_only(issuer: Running) -> None:
    directory = issuer.home / "issuer"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {
        "key.json": 0o600,
        "clients.json": 0o600,
    }


def test_processes_that_race_get_the_same_key_and_client(tmp_path: Path) -> None:
    homes = [tmp_path / str(number) for number in range(20)]
    with ProcessPoolExecutor(4) as processes:
        for home in homes:
            made = [processes.submit(identity, home) for _ in range(8)]
            assert len({one.result() for one in made}) == 1
            assert len(list((home / "issuer").iterdir())) == 2, "no drafts are left"


def identity(home: Path) -> tuple[str | None, str]:
    return signing_key(home).kid, clients(home)[DEVELOPMENT_CLIENT]


async def test_a_secret_that_is_given_takes_the_place_of_its_own(tmp_path: Path) -> None:
    app = create_app(tmp_path, "http://issuer", "order-backend", client_secret="given to all who need it")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://issuer") as client:
        for secret, status in (("given to all who need it", 200), (clients(tmp_path)[DEVELOPMENT_CLIENT], 401)):
            answer = await client.post("/token", data=GRANT, auth=(DEVELOPMENT_CLIENT, secret))
            assert answer.status_code == status, answer.text
