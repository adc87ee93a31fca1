"""What a stack may be told by the environment, and the ports that follow from it."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

HOST = "127.0.0.1"  # a development stack trusts whoever reaches it, so nothing outside this machine may

# Offsets from the port base. The base's own neighbours are for people, the rest mirror the servers' usual ports.
ORDERS, CATALOG, CUSTOMERS, REALTIME, ISSUER, SANDBOX, PAYMENTS = range(7)
EDGE = 80
POSTGRES = 1032
VALKEY = 1079
KAFKA = 1092
KAFKA_CONTROLLER = 1093
METRICS = 1100
_HIGHEST_OFFSET = METRICS + 99


class StackSettings(BaseSettings):
    """Where a stack lives, on which ports, and which of its servers are replaced by others."""

    model_config = SettingsConfigDict(env_prefix="ORDERS_", extra="ignore", frozen=True)

    home: Path = Field(default=Path(".local"), description="directory of all state, logs and endpoints.json")
    port_base: int = Field(default=8000, ge=1024, le=65535 - _HIGHEST_OFFSET, description="all ports follow from it")
    postgres_url: str | None = Field(default=None, description="replaces PostgreSQL: libpq URL of an owner of `orders`")
    role_password: str | None = Field(default=None, description="of every process's role there; default: the URL's")
    valkey_url: str | None = Field(default=None, description="replaces Valkey: URL of Valkey or Redis")
    kafka_url: str | None = Field(default=None, description="replaces Kafka: host:port, separated by commas")
    kafka_advertised: str | None = Field(
        default=None, description="host:port of a proxy before our own Kafka, by which all of its clients come"
    )
    issuer_url: str | None = Field(default=None, description="replaces the token issuer: an OIDC issuer")
    provider_url: str | None = Field(default=None, description="replaces the payments sandbox: one that runs elsewhere")
    callback_secret: SecretStr | None = Field(
        default=None, description="what a payment provider signs its callbacks with; default: one of the sandbox's own"
    )
    maven_url: str | None = Field(default=None, description="where the broker's jars come from; default: Maven Central")
    min_free_bytes: int = Field(default=2**30, ge=0, description="a start is refused with less free space in home")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()  # children run in other directories

    def port(self, offset: int) -> int:
        """The port of whatever has this offset."""
        return self.port_base + offset
