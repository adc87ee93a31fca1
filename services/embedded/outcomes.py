"""What the payments sandbox does with a payment: its payment method's name says it."""

import re
from dataclasses import dataclass
from typing import Final, Self

_LATE: Final = re.compile(r"pm_late_(declined_)?([0-9]{1,7})", re.ASCII)
_BUSY: Final = re.compile(r"pm_busy_([0-9]{1,4})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Without anything set, all succeeds at once."""

    declined: bool = False
    late_ms: int | None = None  # first it is being processed; a callback tells when it no longer is
    busy: int = 0  # so many requests to authorise are answered 503, with nothing done
    hangs: bool = False  # the money is held, and who asked never hears of it
    lost: frozenset[str] = frozenset()  # these steps are done, and the connection is cut before their answer
    twice: bool = False  # every change is told in two callbacks, at once with the answer

    @classmethod
    def of(cls, payment_method: str) -> Self:
        """Names that say nothing else succeed."""
        if late := _LATE.fullmatch(payment_method):
            return cls(declined=bool(late[1]), late_ms=int(late[2]))
        if busy := _BUSY.fullmatch(payment_method):
            return cls(busy=int(busy[1]))
        match payment_method:
            case "pm_declined":
                return cls(declined=True)
            case "pm_hang":
                return cls(hangs=True)
            case "pm_lost":
                return cls(lost=frozenset({"authorize"}))
            case "pm_lost_always":
                return cls(lost=frozenset({"authorize", "capture", "void", "refund"}))
            case "pm_twice":
                return cls(twice=True)
            case _:
                return cls()
