"""The one error of the domain. Imports nothing, so that every layer can raise it."""

from collections.abc import Mapping


class DomainError(Exception):
    """A refusal with a stable `code`; nothing of the refused request is stored.

    `status` is the HTTP status it is answered with, `detail` a sentence for a person, `extra` further members of the
    problem document (RFC 9457, section 3.2), `headers` response headers such as Retry-After.
    """

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, status, detail)
        self.code = code
        self.status = status
        self.detail = detail
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


def not_found(detail: str = "There is no such resource, or it is not yours.") -> DomainError:
    """Missing and foreign alike: 404 `not_found`, the same bytes for both."""
    return DomainError("not_found", 404, detail)


def invalid(detail: str, **extra: object) -> DomainError:
    """The body, a header or a parameter alone is wrong: 422 `invalid`."""
    return DomainError("invalid", 422, detail, extra=extra)


def unavailable(detail: str, *, retry_after_seconds: int = 1) -> DomainError:
    """A part we cannot work without is away: 503 `unavailable` with Retry-After."""
    return DomainError("unavailable", 503, detail, headers={"Retry-After": str(retry_after_seconds)})
