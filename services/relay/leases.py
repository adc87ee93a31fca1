"""Which relay publishes which slice: shared out evenly among the live ones, by leases in the database.

A lease only keeps two relays from doing the same work. Order does not depend on it: whoever reads version n+1 of an
aggregate has read n with it or finds it gone, and it is gone only when Kafka has it. So a relay that was frozen past
its lease may send duplicates, and never anything out of order (decision 0014).
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common import db
from services.common.db import Database, Statement
from services.common.outbox import Alarm
from services.relay.outbox import TYPES
from services.relay.outboxes import Queue, look

UNSETTLED_FACTOR: Final = 0.2  # of the pause between two beats, while slices change hands
FORGET_SECONDS: Final = 3600.0  # rows of relays that are long gone

log = structlog.get_logger()
outbox_slices = Gauge("outbox_slices", "Slices this relay publishes", ["outbox"])
relay_beats_total = Counter("relay_beats_total", "Renewals of this relay's leases, by result", ["result"])

# Of what is left of 16 divided by the live relays, one each goes to the first by name, so that shares add up to 16.
# A slice is taken only from who is seen to have lost it, and given up only when nothing of it is under way (`slices`).
_BEAT: Final = f"""
WITH gone AS (
    DELETE FROM relay.members m
    WHERE CASE WHEN m.relay = :relay THEN m.outbox <> ALL (:outboxes)
               ELSE m.expires_at < now() - make_interval(secs => {FORGET_SECONDS}) END
), me AS (
    INSERT INTO relay.members (outbox, relay, expires_at)
    SELECT o.outbox, :relay, now() + make_interval(secs => :seconds) FROM unnest(:outboxes) AS o (outbox)
    ON CONFLICT (outbox, relay) DO UPDATE SET expires_at = excluded.expires_at
), others AS MATERIALIZED (
    SELECT outbox, relay FROM relay.members WHERE relay <> :relay AND expires_at > now()
), counted AS (
    SELECT o.outbox, (SELECT count(*) FROM others m WHERE m.outbox = o.outbox) + 1 AS relays,
           (SELECT count(*) FROM others m WHERE m.outbox = o.outbox AND m.relay < :relay) AS before
    FROM unnest(:outboxes) AS o (outbox)
), shares AS (
    SELECT outbox, 16 / relays + CASE WHEN before < 16 % relays THEN 1 ELSE 0 END AS share FROM counted
), candidates AS MATERIALIZED (
    SELECT s.outbox, s.slice, s.relay AS seen, s.relay IS NOT DISTINCT FROM :relay AS mine, share >= row_number() OVER (
               PARTITION BY s.outbox ORDER BY s.relay IS DISTINCT FROM :relay, s.slice) AS wanted
    FROM relay.slices s JOIN shares USING (outbox)
    WHERE NOT EXISTS (SELECT FROM others m WHERE m.outbox = s.outbox AND m.relay = s.relay)
), changed AS (
    UPDATE relay.slices s SET relay = CASE WHEN c.wanted THEN :relay END
    FROM candidates c
    WHERE s.outbox = c.outbox AND s.slice = c.slice AND s.relay IS NOT DISTINCT FROM c.seen AND CASE
        WHEN c.wanted THEN NOT c.mine
        ELSE c.mine AND (c.outbox, c.slice) IN (SELECT * FROM unnest(:given_outboxes, :slices)) END
    RETURNING s.outbox, s.slice, s.relay
), held AS (
    SELECT outbox, slice FROM relay.slices WHERE relay = :relay
)
SELECT outbox, share, ARRAY(
           SELECT slice FROM candidates c WHERE c.outbox = shares.outbox AND mine AND wanted
           UNION ALL SELECT slice FROM changed c WHERE c.outbox = shares.outbox AND relay = :relay
       ) AS slices, ARRAY(
           SELECT slice FROM candidates c WHERE c.outbox = shares.outbox AND mine AND NOT wanted
       ) AS surplus, {{waiting}} AS waiting
FROM shares
"""  # noqa: S608 # what is put in is a constant


def beating(queues: Sequence[Queue]) -> Statement:
    """Renews, and says of those of `queues` that have rows in the relay's slices that they are `waiting`."""
    waiting = f"outbox IN ({look(queues, 'held AS s')})" if queues else "FALSE"
    return db.statement(
        "relay_beat", _BEAT.replace("{waiting}", waiting), {**TYPES, "given_outboxes": TYPES["outboxes"]}
    )


class Lease:
    """The slices of one outbox that this relay may publish, as it knows them."""

    def __init__(self, alarm: Alarm) -> None:
        self.alarm = alarm  # rung when there are new ones
        self.wanted = False  # whether it could publish any
        self.under_way: set[int] = set()  # of the batches that are being published
        self._slices: frozenset[int] = frozenset()
        self._surplus: frozenset[int] = frozenset()
        self._until = 0.0

    def slices(self) -> list[int]:
        """Those to publish now: none when the lease has run out by this process's own clock, as after a freeze."""
        return sorted(self._slices) if asyncio.get_running_loop().time() < self._until else []

    def given_up(self) -> frozenset[int]:
        """What this relay has too many of, and has nothing under way of."""
        return self._surplus - self.under_way

    def renewed(self, slices: Iterable[int], surplus: Iterable[int], until: float) -> None:
        """From now on these."""
        new = frozenset(slices) - self._slices
        self._slices, self._surplus, self._until = frozenset(slices), frozenset(surplus), until
        if new:
            self.alarm.ring()


class Leases:
    """The leases of this relay on all outboxes, renewed together; whose queue has rows is rung by the way.

    Not by the way where `looks` is false: a queue that cannot be looked at is to cost nobody a lease.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        queues: Sequence[Queue] = (),
        *,
        lease_seconds: float,
        beat_seconds: float,
    ) -> None:
        self._database = database
        self._name = name
        self._lease_seconds, self._beat_seconds = lease_seconds, beat_seconds
        self._leases: dict[str, Lease] = {}
        self._beat, self._beat_and_look = beating(()), beating(queues)
        self._wanted = asyncio.Event()
        self._due_at = 0.0
        self.looks = True

    def add(self, outbox: str, alarm: Alarm) -> Lease:
        """A lease on the outbox of that name, on nothing yet."""
        lease = self._leases[outbox] = Lease(alarm)
        return lease

    def want(self, lease: Lease, wanted: bool) -> None:
        """Whether `lease` is of use. One that is not goes to others with the next beat, which is soon."""
        lease.wanted = wanted
        if not wanted:
            lease.renewed((), (), 0.0)
        self._wanted.set()

    def held(self) -> Mapping[str, Sequence[int]]:
        """The slices to publish now, by outbox."""
        return {name: lease.slices() for name, lease in self._leases.items()}

    async def wait(self, seconds: float) -> bool:
        """After so long, or as soon as the leases are to be renewed: then it is true."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(min(seconds, max(0.0, self._due_at - clock()))):
                await self._wanted.wait()
        except TimeoutError:
            return clock() >= self._due_at
        return True

    async def renew(self) -> None:
        """They are renewed. What cannot be renewed runs out, and others take over."""
        self._wanted.clear()
        self._due_at = asyncio.get_running_loop().time() + self._beat_seconds
        try:
            settled = await self.beat()
        except Exception as error:  # noqa: BLE001 # whatever it is
            relay_beats_total.labels("failed").inc()
            log.warning("relay.beat_failed", error=repr(error), looked=self.looks)
            settled, self.looks = not self.looks, False
        if not settled:
            self._due_at -= self._beat_seconds * (1 - UNSETTLED_FACTOR)

    async def beat(self) -> bool:
        """The wanted leases are renewed, and what others should have is given up. Whether this relay has its share."""
        until = asyncio.get_running_loop().time() + self._lease_seconds  # a little before the database's own
        wanted = {name: lease for name, lease in self._leases.items() if lease.wanted}
        given = [(name, number) for name, lease in wanted.items() for number in lease.given_up()]
        rows = await self._database.rows(
            self._beat_and_look if self.looks else self._beat,
            relay=self._name,
            outboxes=list(wanted),
            seconds=self._lease_seconds,
            given_outboxes=[name for name, _ in given],
            slices=[number for _, number in given],
        )
        settled = True
        for row in rows:
            lease = wanted[row["outbox"]]
            if lease.wanted:  # still
                lease.renewed(row["slices"], row["surplus"], until)
            if row["waiting"]:
                lease.alarm.ring()
            settled &= len(row["slices"]) == row["share"] and not row["surplus"]
        for name, lease in self._leases.items():
            outbox_slices.labels(name).set(len(lease.slices()))
        relay_beats_total.labels("renewed").inc()
        return settled

    async def close(self) -> None:
        """Others may have the slices at once."""
        for lease in self._leases.values():
            self.want(lease, False)
        await self.beat()
