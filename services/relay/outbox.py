"""An outbox: a table of unpublished events, how its slices are claimed and emptied, and what its rows are on Kafka."""

from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, db, ids
from services.common.db import Row, Statement
from services.common.stream import Message, UnpublishableError, check_size
from services.contracts import envelope

SLICES: Final = range(ids.SLICES)

_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "slices": ARRAY(sa.SmallInteger()),
    "positions": ARRAY(sa.BigInteger()),
    "parked": ARRAY(sa.Uuid()),
    "rows": sa.Integer(),
}

# Session locks: they are gone when the connection is, and another relay takes over.
_CLAIM: Final = """
SELECT s.slice FROM unnest(:slices) AS s (slice)
WHERE pg_try_advisory_lock(hashtext('{table}'), s.slice::integer)
"""

# Index: primary key.
_DELETE: Final = """
DELETE FROM {table} o
USING unnest(:slices, :positions) AS d (slice, position)
WHERE o.slice = d.slice AND o.position = d.position
"""


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table `<name>.outbox`. Its rows are events of aggregates, each of which keeps its order.

    `read_sql` gives the first `rows` events of each of `slices`, in position order, without those of `parked`
    aggregates; `look_sql` how many rows wait (`depth`), and since when (`oldest_at`). `id_member` is what the event
    calls its aggregate.
    """

    name: str
    topic: str
    source: str
    id_member: str
    read_sql: str
    look_sql: str
    claim: Statement = field(init=False)
    read: Statement = field(init=False)
    delete: Statement = field(init=False)
    look: Statement = field(init=False)

    def __post_init__(self) -> None:
        table = f"{self.name}.outbox"
        for name, sql in (
            ("claim", _CLAIM.format(table=table)),
            ("read", self.read_sql),
            ("delete", _DELETE.format(table=table)),
            ("look", self.look_sql),
        ):
            object.__setattr__(self, name, db.statement(f"{self.name}_outbox_{name}", sql, _TYPES))

    def message(self, row: Row) -> Message:
        """The event that `row` stands for. UnpublishableError when there is none, or it is too large."""
        aggregate_id: UUID = row["aggregate_id"]
        if row["event_id"] is None:
            raise UnpublishableError("there is no such event")
        subject, event_id = ids.to_text(aggregate_id), ids.to_text(row["event_id"])
        time = clock.to_text(row["occurred_at"])
        value = orjson.dumps(
            {
                "event_id": event_id,
                self.id_member: subject,
                "version": row["version"],
                "type": row["type"],
                "occurred_at": time,
                "actor": row["actor"],
                "data": orjson.Fragment(row["data"]),
            }
        )
        message = Message(
            key=subject.encode(),
            value=value,
            headers=envelope.headers(
                event_id=event_id,
                type_=row["type"],
                source=self.source,
                subject=subject,
                time=time,
                version=row["version"],
                traceparent=row["traceparent"],
            ),
        )
        check_size(message)
        return message
