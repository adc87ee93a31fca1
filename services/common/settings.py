"""Settings every process shares, read from the environment (prefix `ORDERS_`) once, at its start."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ProcessSettings(BaseSettings):
    """What any process may be told. A wrong value ends the process before it serves anything."""

    model_config = SettingsConfigDict(env_prefix="ORDERS_", extra="ignore", frozen=True)

    postgres_url: str = Field(
        default="postgresql://localhost/orders", description="libpq URL of the primary, its user the process's role"
    )
    valkey_url: str = Field(default="redis://127.0.0.1:6379/0", description="URL of Valkey or Redis")
    cache_url: str | None = Field(
        default=None, description="URL of the cache, Valkey's when not given; empty: none, and then for all processes"
    )
    kafka_url: str = Field(default="127.0.0.1:9092", description="bootstrap servers, host:port separated by commas")
    issuer_url: str = Field(
        default="http://127.0.0.1:8004", description="OIDC issuer: `iss`, and where its discovery document is found"
    )
    audience: str = Field(default="order-backend", description="`aud` that access tokens must carry")
    host: str = Field(default="127.0.0.1", description="address the HTTP server binds")
    port: int = Field(default=8000, ge=0, le=65535, description="port the HTTP server binds, 0 for a free one")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="port for Prometheus, 0 for none")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    consumer_stuck_after_seconds: float = Field(
        default=120.0,
        gt=0,
        description="a consumer ends when messages wait and nothing was done for so long: far over the longest batch",
    )

    @property
    def cache_at(self) -> str:
        """The URL of the cache, empty when there is to be none."""
        return self.valkey_url if self.cache_url is None else self.cache_url


class ApiSettings(ProcessSettings):
    """What a process is told besides that answers requests from a database of its own."""

    pool_size: int = Field(default=8, ge=1, le=200, description="connections of one process to PostgreSQL")


class ClientSettings(ProcessSettings):
    """What a process is told besides that calls others' APIs in its own name (OAuth 2.0, client credentials)."""

    client_id: str = Field(default="", description="its client at the issuer")
    client_secret: SecretStr = Field(default=SecretStr(""), description="the secret of that client")
