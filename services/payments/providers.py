"""The providers there are, by their names."""

from services.payments.provider import Provider
from services.payments.sandbox import SandboxProvider


def opened(name: str, *, url: str, timeout_seconds: float) -> Provider:
    """The provider of that name, to be closed by the caller. ValueError when there is none."""
    match name:
        case "sandbox":
            return SandboxProvider(url, timeout_seconds=timeout_seconds)
        case _:
            raise ValueError(f"there is no provider {name}")
