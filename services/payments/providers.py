"""The providers there are, by their names."""

from typing import Final

from services.payments.provider import Provider
from services.payments.sandbox import SandboxProvider
from services.payments.stripe import StripeProvider

NAMES: Final = ("sandbox", "stripe")


def opened(
    name: str, *, url: str, timeout_seconds: float, stripe_key: str = "", stripe_url: str | None = None
) -> Provider:
    """The provider of that name, one of NAMES; belongs to one event loop, and the caller closes it.

    `url` is the sandbox's, `stripe_url` replaces Stripe's own API. ValueError when what the provider needs is missing.
    """
    match name:
        case "sandbox":
            return SandboxProvider(url, timeout_seconds=timeout_seconds)
        case "stripe" if stripe_key:
            return StripeProvider(stripe_key, url=stripe_url, timeout_seconds=timeout_seconds)
        case "stripe":
            raise ValueError("Stripe needs the secret key of an account")
        case _:
            raise ValueError(f"there is no provider {name!r}, but {' and '.join(NAMES)}")
