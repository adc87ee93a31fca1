"""How an event travels on Kafka: CloudEvents 1.0 in binary mode (Kafka protocol binding, section 3.2)."""

import re
from collections.abc import Mapping
from typing import Final

ORDERS_TOPIC: Final = "orders.events.v1"
ORDERS_SOURCE: Final = "/orders"
CATALOG_TOPIC: Final = "catalog.events.v1"
CATALOG_SOURCE: Final = "/catalog"
PAYMENTS_TOPIC: Final = "payments.events.v1"
PAYMENTS_SOURCE: Final = "/payments"
# Each event of these carries all of its subject: the newest of a key is kept for ever, and a new consumer begins there.
COMPACTED_TOPICS: Final = frozenset({CATALOG_TOPIC})
CONTENT_TYPE: Final = "application/json"

Headers = list[tuple[str, bytes]]
TRACEPARENT: Final = re.compile(  # W3C Trace Context, section 3.2
    r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
)


def headers(
    *, event_id: str, type_: str, source: str, subject: str, time: str, version: int, traceparent: str | None
) -> Headers:
    """The message headers of an event about `subject`, whose `version` orders it among its own.

    `ce_sequence` has 20 digits, so that text sorts as numbers do.
    """
    about = subject.encode()
    found = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", type_.encode()),
        ("ce_source", source.encode()),
        ("ce_subject", about),
        ("ce_time", time.encode()),
        ("ce_sequence", b"%020d" % version),
        ("ce_partitionkey", about),
        ("content-type", CONTENT_TYPE.encode()),
    ]
    if traceparent is not None:
        found.append(("traceparent", traceparent.encode()))
    return found


def traceparent_of(headers: Mapping[str, bytes]) -> str | None:
    """The trace a message belongs to; None when it says none, or nothing that could be one."""
    text = headers.get("traceparent", b"").decode("ascii", "replace")
    return text if TRACEPARENT.match(text) else None
