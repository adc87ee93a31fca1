"""Where a stack's servers are, its own or those given instead."""

import json
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from services.embedded.kafka import Kafka
from services.embedded.postgres import Postgres
from services.embedded.replica import Replica
from services.embedded.settings import HOST, ISSUER, StackSettings
from services.embedded.valkey import Valkey

REPORTS_ROLE = "orders_reports"
REPLICA_ENDPOINT = "postgres_replica"  # in endpoints.json


@dataclass(frozen=True)
class Addresses:
    """`postgres` is the URL of the owner of the database, who may migrate it; `role_password` is every role's.

    `replica` is the URL of the replica as the role that reads reports, None for none.
    """

    postgres: str
    valkey: str
    kafka: str
    issuer: str
    role_password: str | None = None
    replica: str | None = None

    @classmethod
    def of(cls, settings: StackSettings, *, replica: bool = False) -> "Addresses":
        """What will be true once the stack has started."""
        given = settings.postgres_url
        return cls(
            postgres=given or Postgres.of(settings).url,
            valkey=settings.valkey_url or Valkey.of(settings).url,
            kafka=settings.kafka_url or Kafka.of(settings).url,
            issuer=settings.issuer_url or f"http://{HOST}:{settings.port(ISSUER)}",
            # our own socket asks nobody for a password
            role_password=settings.role_password or unquote(urlsplit(given).password or "") or None if given else None,
            replica=settings.replica_url
            or (with_user(Replica.of(settings).url, REPORTS_ROLE, None) if replica else None),
        )

    @classmethod
    def running(cls, settings: StackSettings) -> "Addresses":
        """Of the stack that runs in this home: with its replica, if `endpoints.json` tells of one."""
        try:
            endpoints = json.loads((settings.home / "endpoints.json").read_bytes())
        except FileNotFoundError:
            endpoints = {}
        return cls.of(settings, replica=not settings.postgres_url and REPLICA_ENDPOINT in endpoints)

    @property
    def replica_as_owner(self) -> str | None:
        """The replica as the owner of the database, who may read all of it, and there change nothing."""
        owner = urlsplit(self.postgres)
        if self.replica is None:
            return None
        return with_user(self.replica, unquote(owner.username or ""), unquote(owner.password or "") or None)

    def postgres_as(self, role: str) -> str:
        """The database as `role`."""
        return with_user(self.postgres, role, self.role_password)


def with_user(url: str, user: str, password: str | None) -> str:
    """The same URL for somebody else."""
    parts = urlsplit(url)
    secret = f":{quote(password, safe='')}" if password else ""
    where = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}{secret}@{where}"))
