"""Every path through a `World`, but for those that lead where another has been."""

from dataclasses import dataclass

from redis.asyncio import Redis

from services.common.cache_store import Store
from tests.faults.interleavings import Move, World


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
    """Every state that can be reached has been reached, up to the first violation."""
    seen: set[tuple[object, ...]] = set()
    explored = Explored()
    open_paths: list[tuple[Move, ...]] = [()]
    while open_paths:
        path = open_paths.pop()
        explored.paths += 1
        world = kind(store, redis, relay, faults_max)
        try:
            await world.open()
            for move in path:
                await world.play(move)
            while True:
                await world.look()
                if what := world.wrong():
                    explored.violation = Violation(what, path)
                    return explored
                state = world.state()
                if state in seen:
                    break
                seen.add(state)
                moves = list(world.moves())
                if not moves:
                    explored.rests += 1
                    break
                open_paths += [(*path, move) for move in moves[1:]]
                path = (*path, moves[0])
                await world.play(moves[0])
        finally:
            await world.close()
    explored.states = len(seen)
    return explored
