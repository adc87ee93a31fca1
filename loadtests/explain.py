"""EXPLAIN for the statements as processes run them: same session settings, same generic plans, real values."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from services.common.db import SESSION, Statement

_MONTH: Final = re.compile(r"_2\d{3}_\d{2}(?=_|$)")  # in the name of a partition, and of its indexes


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

    def touched(self) -> dict[str, int]:
        """How many partitions were touched, of each table that has some."""
        found = defaultdict(set)
        for node in self.nodes():
            if _MONTH.search(name := node.get("Relation Name", "")):
                found[f"{node['Schema']}.{_MONTH.sub('', name)}"].add(name)
        return {parent: len(partitions) for parent, partitions in sorted(found.items())}

    def pruned(self) -> int:
        """How many scans of partitions were left out when it started, as their bounds exclude the values."""
        return sum(node.get("Subplans Removed", 0) for node in self.nodes())

    def buffers(self) -> int:
        """How many pages of 8 KiB it has looked at, those in memory and those that were not; a page looked at twice
        counts twice. Without those of triggers and of the planner.
        """
        return int(self.root["Shared Hit Blocks"]) + int(self.root["Shared Read Blocks"])

    def indexes(self, relation: str) -> set[str]:
        """The indexes of `relation` (or its partitions, without their month) that were read."""
        return {
            node["Index Name"].removeprefix(node.get("Relation Name", ""))
            for node in self.nodes()
            if node.get("Relation Name", "").startswith(relation) and "Index Name" in node
        }

    def index_names(self) -> set[str]:
        """All that were read; those of partitions without their month, such as `orders_pkey`."""
        return {_MONTH.sub("", node["Index Name"]) for node in self.nodes() if "Index Name" in node}

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

    def rows_sorted(self) -> float:
        """Of the largest sort."""
        sorts = (node for node in self.nodes() if node["Node Type"] in {"Sort", "Incremental Sort"})
        return max((float(rows["Actual Rows"]) for node in sorts for rows in node["Plans"]), default=0)


class Explain:
    """EXPLAIN ANALYZE of a statement, undone afterwards."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", settings: Mapping[str, str] = SESSION) -> None:
        self._connection = connection
        self._settings = settings

    async def __call__(self, statement: Statement, **values: object) -> Plan:
        """The generic plan as it ran with these values."""
        for name, value in self._settings.items():
            await self._connection.execute("SELECT set_config($1, $2, false)", name, value)
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            # Through PREPARE, as a process has it: EXPLAIN of the bare statement would plan for these very values.
            await self._connection.execute(f"PREPARE explained AS {statement.sql}")
            literals = await self._literals(statement.sql, statement.arguments(values))
            given = f" ({', '.join(literals)})" if literals else ""
            found = await self._connection.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, VERBOSE, FORMAT JSON) EXECUTE explained{given}"
            )
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
