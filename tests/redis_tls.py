"""A Redis that takes TLS only, with certificates of an authority of the test's own. The packaged Valkey has no TLS."""

import asyncio
import datetime
import ipaddress
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.conftest import free_port
from tests.faults.waiting import eventually

HOST = "127.0.0.1"
VALID = datetime.timedelta(days=1)
CURVE = ec.SECP256R1()


class Authority:
    """Signs certificates of servers. Its own is in the file `path`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(CURVE)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = directory / f"{name}.crt"
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        made = self._begun(self._name, self._key).add_extension(constraints, critical=True)
        self._write(self.path, made.sign(self._key, hashes.SHA256()))

    def server(self, name: x509.GeneralName) -> tuple[Path, Path]:
        """Files with the certificate of a server of that name, and its key."""
        key = ec.generate_private_key(CURVE)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        made = self._begun(subject, key).add_extension(x509.SubjectAlternativeName([name]), critical=False)
        paths = self._directory / f"{key.public_key().public_numbers().x:x}.crt", self._directory / f"{id(key):x}.key"
        self._write(paths[0], made.sign(self._key, hashes.SHA256()))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths

    def _begun(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - VALID)
            .not_valid_after(now + VALID)
        )

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@dataclass(frozen=True)
class RedisTls:
    """It runs."""

    port: int

    def url(self, authority: Path) -> str:
        """For who trusts that authority alone."""
        return f"rediss://{HOST}:{self.port}/0?ssl_ca_certs={authority}"


def this_machine() -> x509.GeneralName:
    """The name by which tests reach it."""
    return x509.IPAddress(ipaddress.ip_address(HOST))


@asynccontextmanager
async def redis_tls(certificate: Path, key: Path) -> AsyncIterator[RedisTls]:
    """One that shows this certificate, in memory only."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server in PATH")
    port = free_port()
    flags = {
        "bind": HOST,
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),  # it wants one, and asks no client for a certificate
        "tls-auth-clients": "no",
        "save": "",
        "appendonly": "no",
        "dir": str(certificate.parent),
    }
    running = await asyncio.create_subprocess_exec(
        program,
        *(word for flag, value in flags.items() for word in (f"--{flag}", value)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    looking = Redis(host=HOST, port=port, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
    try:

        async def answers() -> bool:
            assert running.returncode is None, "redis-server has ended"
            try:
                return bool(await looking.ping())
            except RedisError:
                return False

        await eventually(answers, "Redis answers")
        yield RedisTls(port)
    finally:
        await looking.aclose()
        if running.returncode is None:
            running.kill()
        await running.wait()
