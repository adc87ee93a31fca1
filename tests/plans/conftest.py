"""EXPLAIN for the statements as processes run them: same role settings, same generic plans."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from services.common.db import SESSION, Statement


@dataclass(frozen=True)
class Plan:
    """A plan, with what was really done."""

    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Every node that ran."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += node.get("Plans", [])
            if node.get("Actual Loops", 0):
                yield node

    def partitions(self, parent: str) -> set[str]:
        """The partitions of `parent` that were touched."""
        return {name for node in self.nodes() if (name := node.get("Relation Name", "")).startswith(f"{parent}_2")}

    def indexes(self, relation: str) -> set[str]:
        """The indexes of `relation` (or its partitions, without their month) that were read."""
        return {
            node["Index Name"].removeprefix(node.get("Relation Name", ""))
            for node in self.nodes()
            if node.get("Relation Name", "").startswith(relation) and "Index Name" in node
        }

    def node_types(self) -> set[str]:
        """What kinds of node ran."""
        return {node["Node Type"] for node in self.nodes()}

    def scanned(self) -> set[str]:
        """Relations that were read from end to end."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan"}

    def rows_read(self) -> float:
        """Rows that scans of tables and indexes gave or threw away."""
        return sum(
            (float(node["Actual Rows"]) + float(node.get("Rows Removed by Filter", 0))) * float(node["Actual Loops"])
            for node in self.nodes()
            if "Relation Name" in node and node["Node Type"].endswith("Scan")
        )


class Explain:
    """EXPLAIN ANALYZE of a statement, undone afterwards."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def __call__(self, statement: Statement, **values: object) -> Plan:
        """The generic plan as it ran with these values."""
        for name, value in SESSION.items():
            await self._connection.execute("SELECT set_config($1, $2, false)", name, value)
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            # Through PREPARE, as a process has it: EXPLAIN of the bare statement would plan for these very values.
            await self._connection.execute(f"PREPARE explained AS {statement.sql}")
            literals = await self._literals(statement.sql, statement.arguments(values))
            given = f" ({', '.join(literals)})" if literals else ""
            found = await self._connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE explained{given}")
        finally:
            await transaction.rollback()
            await self._connection.execute("DEALLOCATE explained")
        return Plan(json.loads(found)[0]["Plan"])

    async def _literals(self, sql: str, arguments: list[object]) -> list[str]:
        """The arguments as PostgreSQL itself would write them."""
        types = [
            f"{parameter.schema}.{parameter.name}" if not parameter.name.endswith("[]") else parameter.name
            for parameter in (await self._connection.prepare(sql)).get_parameters()
        ]
        return [
            await self._connection.fetchval(f"SELECT quote_nullable(($1::{type_})::text)", argument) + f"::{type_}"
            for type_, argument in zip(types, arguments, strict=True)
        ]


@pytest.fixture
def explain(owner: "asyncpg.Connection[asyncpg.Record]") -> Explain:
    """Call it with a statement and its values."""
    return Explain(owner)
