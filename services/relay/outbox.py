"""An outbox: a table of unpublished events, how its rows are read, deleted and parked, and what they are on Kafka."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, db, ids
from services.common.db import Database, Row, Statement
from services.common.stream import Message, UnpublishableError, check_size
from services.contracts import envelope

SLICES: Final = range(ids.SLICES)

TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "aggregate_id": sa.Uuid(),
    "outboxes": ARRAY(sa.Text()),
    "slices": ARRAY(sa.SmallInteger()),
    "positions": ARRAY(sa.BigInteger()),
    "reasons": ARRAY(sa.Text()),
    "held": ARRAY(sa.Boolean()),
    "rows": sa.Integer(),
    "seconds": sa.Float(),
}

# The version of the first parked row that stands before `o`. Known in the snapshot that gives `o` itself: a row that is
# missing there is either on Kafka or parked, so nothing ever overtakes what was parked meanwhile. Index: primary key.
_PARKED_VERSION: Final = """(
    SELECT p.version FROM relay.parked p
    WHERE p.outbox = '{name}' AND p.aggregate_id = o.{aggregate} AND p.position < o.position
    ORDER BY p.position LIMIT 1
) AS parked_version"""

# Index: primary key, one read a row. A plain join, planned while the outbox was empty, reads all of the index for every
# batch once there is a backlog; OFFSET 0 leaves the planner no choice.
_ROWS: Final = """
ARRAY(
    SELECT o.row_id FROM unnest(:slices, :positions) AS d (slice, position)
    CROSS JOIN LATERAL (
        SELECT o.ctid AS row_id FROM {name}.outbox o WHERE o.slice = d.slice AND o.position = d.position OFFSET 0) o
)"""

_DELETE: Final = f"DELETE FROM {{name}}.outbox WHERE ctid = ANY ({_ROWS})"  # noqa: S608 # a constant

# Parking and releasing take turns. A statement of its own, so that the next one sees what the turn before has left.
_PARKING_TURN: Final = "SELECT pg_advisory_xact_lock(hashtext('relay.parked'))"

# A row that is only held is moved as long as one before it is parked: it may have been released since it was read.
_PARK: Final = """
WITH moved AS (
    DELETE FROM {name}.outbox o
    USING unnest(:slices, :positions, :reasons, :held) AS g (slice, position, reason, held)
    WHERE o.slice = g.slice AND o.position = g.position AND (NOT g.held OR EXISTS (
        SELECT FROM relay.parked p
        WHERE p.outbox = '{name}' AND p.aggregate_id = o.{aggregate} AND p.position < o.position))
    RETURNING o.{aggregate} AS aggregate_id, o.position, o.version, g.reason, to_jsonb(o.*) AS content
)
INSERT INTO relay.parked (outbox, aggregate_id, position, version, reason, content, parked_at)
SELECT '{name}', aggregate_id, position, version, reason, content, now() FROM moved
RETURNING aggregate_id, version, reason
"""

_RELEASE: Final = """
WITH released AS (
    DELETE FROM relay.parked WHERE outbox = '{name}' AND aggregate_id = :aggregate_id RETURNING content
)
INSERT INTO {name}.outbox OVERRIDING SYSTEM VALUE
SELECT row.* FROM released CROSS JOIN LATERAL jsonb_populate_record(NULL::{name}.outbox, content) row
RETURNING version
"""


@dataclass(frozen=True, slots=True)
class Outbox:
    """The table `<name>.outbox`. Its rows are events of aggregates, each of which keeps its order.

    `read_sql` gives the first `rows` events of each of `slices`, with `{parked_version}`: the version of the parked
    row, if any, that each has to wait for. `oldest_sql` gives when the first event of the slices happened. `aggregate`
    is the column of the aggregate's id, `id_member` what the event calls it.
    """

    name: str
    topic: str
    source: str
    aggregate: str
    id_member: str
    read_sql: str
    oldest_sql: str
    read: Statement = field(init=False)
    delete: Statement = field(init=False)
    _park: Statement = field(init=False)
    _release: Statement = field(init=False)

    def __post_init__(self) -> None:
        names = {"name": self.name, "aggregate": self.aggregate}
        for member, sql in (
            ("read", self.read_sql.format(parked_version=_PARKED_VERSION.format(**names))),
            ("delete", _DELETE.format(**names)),
            ("_park", _PARK.format(**names)),
            ("_release", _RELEASE.format(**names)),
        ):
            label = f"{self.name}_outbox_{member.removeprefix('_')}"
            object.__setattr__(self, member, db.statement(label, sql, TYPES))

    @property
    def table(self) -> str:
        """With its schema."""
        return f"{self.name}.outbox"

    async def park(self, database: Database, rows: Sequence[tuple[Row, str]]) -> list[Row]:
        """`rows` are out of the outbox and in `relay.parked`, each with its reason; gives those that were moved.

        A row that waits for another (`parked_version`) stays where it is when that one has been released meanwhile.
        """
        async with database.transaction() as connection:
            await parking_turn.rows(connection)
            return await self._park.rows(
                connection,
                slices=[row["slice"] for row, _ in rows],
                positions=[row["position"] for row, _ in rows],
                reasons=[reason for _, reason in rows],
                held=[row["parked_version"] is not None for row, _ in rows],
            )

    async def release(self, database: Database, aggregate_id: UUID) -> list[int]:
        """All parked rows of the aggregate are in the outbox again, where they were; gives their versions.

        For the owner of the schema. The relay tries them anew, and parks again what still cannot be sent.
        """
        async with database.transaction() as connection:
            await parking_turn.rows(connection)
            return sorted(row["version"] for row in await self._release.rows(connection, aggregate_id=aggregate_id))

    def message(self, row: Row) -> Message:
        """The event that `row` stands for. UnpublishableError when there is none, or it cannot be put on Kafka."""
        if row["event_id"] is None:
            raise UnpublishableError("there is no such event")
        try:
            message = self._encoded(row)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnpublishableError(f"it cannot be encoded: {error!r}") from error
        check_size(message)
        return message

    def _encoded(self, row: Row) -> Message:
        subject, event_id = ids.to_text(row["aggregate_id"]), ids.to_text(row["event_id"])
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
        return Message(
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


parking_turn: Final = db.statement("relay_parking_turn", _PARKING_TURN, {})
