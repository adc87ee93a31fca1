"""Every path through a `World`, but for those that lead where another has been."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis

from services.common.cache_store import Store
from tests.faults.interleavings import Move, World


class Played(Protocol):
    """One path being played, on a real server."""

    async def open(self) -> None:
        """Everybody stands before its first call."""

    def moves(self) -> Iterator[Move]:
        """All that can happen next and makes a difference."""

    async def play(self, move: Move) -> None:
        """The move has been made, and everybody rests again."""

    async def look(self) -> None:
        """It knows what the server has."""

    def state(self) -> tuple[object, ...]:
        """Everything that matters for what can happen from here on."""

    def wrong(self) -> str | None:
        """What should never be, if it is."""

    async def close(self) -> None:
        """Nobody is at work and nothing is left on the server."""


@dataclass(frozen=True)
class Violation:
    """What should never be, and how it came about."""

    what: str
    path: tuple[Move, ...]


@dataclass
class Explored:
    """How much has been seen, and the first thing that was wrong."""

    paths: int = 0
    states: int = 0
    rests: int = 0
    violation: Violation | None = None


async def explore(
    store: Store, redis: Redis, *, relay: bool = True, faults_max: int = 0, kind: type[World] = World
) -> Explored:
    """See `explored`."""
    return await explored(lambda: kind(store, redis, relay, faults_max))


async def explored(begin: Callable[[], Played]) -> Explored:
    """Every state that can be reached from `begin` has been reached, up to the first violation."""
    seen: set[tuple[object, ...]] = set()
    found = Explored()
    open_paths: list[tuple[Move, ...]] = [()]
    while open_paths:
        path = open_paths.pop()
        found.paths += 1
        world = begin()
        try:
            await world.open()
            for move in path:
                await world.play(move)
            while True:
                await world.look()
                if what := world.wrong():
                    found.violation = Violation(what, path)
                    return found
                state = world.state()
                if state in seen:
                    break
                seen.add(state)
                moves = list(world.moves())
                if not moves:
                    found.rests += 1
                    break
                open_paths += [(*path, move) for move in moves[1:]]
                path = (*path, moves[0])
                await world.play(moves[0])
        finally:
            await world.close()
    found.states = len(seen)
    return found
