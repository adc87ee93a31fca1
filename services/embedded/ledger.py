"""The ledger of the payments sandbox: what it holds, has taken and has given back, in one SQLite file.

Each step is one transaction, synced to disk: the payment, the key it was done for, and the callbacks that tell of it.
So a process that is killed has done a step wholly or not at all, and the same key finds it done.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from services.common import clock
from services.common.errors import DomainError, not_found, unavailable
from services.embedded.outcomes import Outcome

PAGE_MAX: Final = 200

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS payments (
    reference         TEXT PRIMARY KEY,
    order_id          TEXT NOT NULL,
    payment_method    TEXT NOT NULL,
    currency          TEXT NOT NULL,
    amount            INTEGER NOT NULL CHECK (amount > 0), -- all amounts are minor units of currency
    state             TEXT NOT NULL CHECK (state IN ('processing', 'authorized', 'declined', 'voided')),
    authorized_amount INTEGER NOT NULL CHECK (authorized_amount IN (0, amount)),
    captured_amount   INTEGER NOT NULL DEFAULT 0 CHECK (captured_amount BETWEEN 0 AND authorized_amount),
    refunded_amount   INTEGER NOT NULL DEFAULT 0 CHECK (refunded_amount BETWEEN 0 AND captured_amount),
    released          INTEGER NOT NULL DEFAULT 0, -- nothing is held any more: voided, or captured for the last time
    failure           TEXT,
    settles_ms        INTEGER, -- when the state of a payment that is being processed is known
    created_ms        INTEGER NOT NULL,
    updated_ms        INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS payments_of_order ON payments (order_id, created_ms);
CREATE INDEX IF NOT EXISTS payments_changed ON payments (updated_ms, reference);
CREATE INDEX IF NOT EXISTS payments_settling ON payments (settles_ms) WHERE settles_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS steps ( -- what was done under which key, and what was answered
    key       TEXT PRIMARY KEY,
    hash      BLOB NOT NULL,
    reference TEXT NOT NULL REFERENCES payments,
    answer    BLOB NOT NULL,
    done_ms   INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS busy (key TEXT PRIMARY KEY, times INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS callbacks (
    id        INTEGER PRIMARY KEY,
    body      BLOB NOT NULL,
    attempts  INTEGER NOT NULL DEFAULT 0,
    due_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS callbacks_due ON callbacks (due_ms);
"""
_AMOUNTS: Final = ("amount", "authorized_amount", "captured_amount", "refunded_amount")


@dataclass(frozen=True, slots=True)
class Asked:
    """A step that is to be done once: the key says which, and what is asked has to be the same each time."""

    key: str
    step: str  # authorize, capture, void, refund
    body: Mapping[str, Any]
    now_ms: int

    @property
    def hash(self) -> bytes:
        """Of what is asked."""
        return hashlib.sha256(orjson.dumps([self.step, dict(self.body)], option=orjson.OPT_SORT_KEYS)).digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """The payment as it stood after the step, the same bytes for the same key; `first` when it was done just now."""

    content: bytes
    first: bool
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Callback:
    """Somebody is to be told, and was tried to be told `attempts` times before."""

    id: int
    body: bytes
    attempts: int


class Ledger:
    """The file at `path`, which exists afterwards. Belongs to one thread. `callbacks`: whether anybody is told.

    What cannot be done is a DomainError, and has changed nothing.
    """

    def __init__(self, path: Path, *, callbacks: bool) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._callbacks = callbacks
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(_SCHEMA)
        self._database.execute("UPDATE callbacks SET due_ms = 0")  # whoever had claimed them is dead

    def close(self) -> None:
        """The file is whole, and closed."""
        self._database.close()

    def authorize(self, asked: Asked) -> Answer:
        """There is a payment, in the state that its payment method asks for."""
        outcome = Outcome.of(asked.body["payment_method"])

        def make() -> str:
            late = outcome.late_ms is not None
            state = "processing" if late else "declined" if outcome.declined else "authorized"
            reference = f"pay_{secrets.token_hex(12)}"
            self._database.execute(
                "INSERT INTO payments (reference, order_id, payment_method, currency, amount, state, authorized_amount,"
                " failure, settles_ms, created_ms, updated_ms) VALUES (:reference, :order_id, :payment_method,"
                " :currency, :amount, :state, :authorized, :failure, :settles, :now, :now)",
                {
                    **asked.body,
                    "reference": reference,
                    "state": state,
                    "authorized": asked.body["amount"] if state == "authorized" else 0,
                    "failure": "card_declined" if state == "declined" else None,
                    "settles": None if outcome.late_ms is None else asked.now_ms + outcome.late_ms,
                    "now": asked.now_ms,
                },
            )
            return reference

        self._be_busy(asked, outcome)
        return self._once(asked, make)

    def change(self, asked: Asked, reference: str, decide: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Answer:
        """The payment has the columns that `decide` gives for it as it is."""

        def change() -> str:
            self._write(reference, asked.now_ms, decide(dict(self._row(reference))))
            return reference

        return self._once(asked, change)

    def payment(self, reference: str) -> dict[str, Any]:
        """As it stands."""
        return _shown(self._row(reference))

    def of_order(self, order_id: str) -> list[dict[str, Any]]:
        """All of the order's, oldest first: whoever asks properly finds one at most."""
        return self._shown("WHERE order_id = ? ORDER BY created_ms, reference LIMIT ?", order_id, PAGE_MAX)

    def changed(self, since_ms: int, after: str, limit: int) -> list[dict[str, Any]]:
        """Those changed since, in the order of their last change; `after`: the last reference seen of that instant."""
        return self._shown(
            "WHERE (updated_ms, reference) > (?, ?) ORDER BY updated_ms, reference LIMIT ?", since_ms, after, limit
        )

    def settle(self, now_ms: int) -> int:
        """How many payments, all whose time had come, are no longer being processed."""
        due = self._database.execute("SELECT * FROM payments WHERE settles_ms <= ? LIMIT 500", (now_ms,)).fetchall()
        if not due:
            return 0
        with self._transaction():
            for payment in due:
                declined = Outcome.of(payment["payment_method"]).declined
                settled = (
                    {"state": "declined", "failure": "card_declined"}
                    if declined
                    else {"state": "authorized", "authorized_amount": payment["amount"]}
                )
                self._write(payment["reference"], now_ms, {**settled, "settles_ms": None})
                self._tell(payment["reference"], now_ms, times=1)
        return len(due)

    def claim_callbacks(self, now_ms: int, *, lease_ms: int, limit: int) -> list[Callback]:
        """Those due, which are not due again until the lease ends."""
        rows = self._database.execute(
            "UPDATE callbacks SET due_ms = :now + :lease, attempts = attempts + 1"
            " WHERE id IN (SELECT id FROM callbacks WHERE due_ms <= :now ORDER BY due_ms, id LIMIT :limit)"
            " RETURNING id, body, attempts - 1 AS attempts",
            {"now": now_ms, "lease": lease_ms, "limit": limit},
        ).fetchall()
        return [Callback(**dict(row)) for row in rows]

    def told(self, callback: Callback) -> None:
        """It was taken, and is forgotten."""
        self._database.execute("DELETE FROM callbacks WHERE id = ?", (callback.id,))

    def tell_again(self, callback: Callback, due_ms: int) -> None:
        """It was not taken."""
        self._database.execute("UPDATE callbacks SET due_ms = ? WHERE id = ?", (due_ms, callback.id))

    def next_due_ms(self) -> int | None:
        """When the next payment settles or the next callback is due; None for never."""
        due: int | None = self._database.execute(
            "SELECT min(due) FROM (SELECT min(settles_ms) AS due FROM payments WHERE settles_ms IS NOT NULL"
            " UNION ALL SELECT min(due_ms) FROM callbacks)"
        ).fetchone()[0]
        return due

    def _be_busy(self, asked: Asked, outcome: Outcome) -> None:
        if not outcome.busy:
            return
        (times,) = self._database.execute(
            "INSERT INTO busy VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET times = times + 1 RETURNING times",
            (asked.key,),
        ).fetchone()
        if times <= outcome.busy:
            raise unavailable(f"This payment method is busy {outcome.busy} times; this was time {times}.")

    def _once(self, asked: Asked, do: Callable[[], str]) -> Answer:
        with self._transaction():
            done = self._database.execute(
                "SELECT hash, answer, payment_method FROM steps JOIN payments USING (reference) WHERE key = ?",
                (asked.key,),
            ).fetchone()
            if done:
                if done["hash"] != asked.hash:
                    raise DomainError("key_reused", 422, "This Idempotency-Key was used for something else.")
                return Answer(done["answer"], first=False, outcome=Outcome.of(done["payment_method"]))
            reference = do()
            payment = self.payment(reference)
            answer, outcome = orjson.dumps(payment), Outcome.of(payment["payment_method"])
            self._database.execute(
                "INSERT INTO steps VALUES (?, ?, ?, ?, ?)", (asked.key, asked.hash, reference, answer, asked.now_ms)
            )
            self._tell(reference, asked.now_ms, times=2 if outcome.twice else 0)
        return Answer(answer, first=True, outcome=outcome)

    def _tell(self, reference: str, now_ms: int, *, times: int) -> None:
        if self._callbacks:
            payment = self.payment(reference)
            body = orjson.dumps({"type": "payment.changed", "order_id": payment["order_id"], "payment": payment})
            self._database.executemany("INSERT INTO callbacks (body, due_ms) VALUES (?, ?)", [(body, now_ms)] * times)

    def _write(self, reference: str, now_ms: int, columns: Mapping[str, Any]) -> None:
        if columns:
            assignments = ", ".join(f"{name} = :{name}" for name in columns)
            self._database.execute(
                f"UPDATE payments SET {assignments}, updated_ms = :now WHERE reference = :reference",  # noqa: S608 our names
                {**columns, "now": now_ms, "reference": reference},
            )

    def _row(self, reference: str) -> sqlite3.Row:
        row: sqlite3.Row | None = self._database.execute(
            "SELECT * FROM payments WHERE reference = ?", (reference,)
        ).fetchone()
        if row is None:
            raise not_found("There is no such payment.")
        return row

    def _shown(self, where: str, *parameters: object) -> list[dict[str, Any]]:
        return [_shown(row) for row in self._database.execute(f"SELECT * FROM payments {where}", parameters)]  # noqa: S608

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _shown(row: sqlite3.Row) -> dict[str, Any]:
    """A payment as it is answered; times are RFC 3339 in UTC."""
    texts = ("reference", "order_id", "payment_method", "currency", "state", "failure")
    return {
        **{name: row[name] for name in (*texts, *_AMOUNTS)},
        "created_at": clock.to_text(clock.from_ms(row["created_ms"])),
        "updated_at": clock.to_text(clock.from_ms(row["updated_ms"])),
    }
