"""Work shared among processes of this host, and how far they are."""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import SynchronizedArray
from operator import add
from typing import Any, Final, TypeVar

from services.common import log

T = TypeVar("T")
Tell = Callable[..., None]  # so much more is done: a number for each of the sums there are

LOOK_SECONDS: Final = 0.25  # how often is told how far they are

_GIVEN_UP: Final = -1  # place of a flag after the sums

_done: "SynchronizedArray[int]"  # of a process of the crew: what all of them have done


class GivenUpError(Exception):
    """Another process of the crew has failed, so that this one's work is not wanted any more."""


async def shared(
    name: str,
    work: Callable[..., Awaitable[T]],
    givens: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    sums: int,
    progress: Tell,
) -> AsyncIterator[T]:
    """What `work(*given, tell)` gives for each of `givens`, as it comes, in so many processes; with one job, here.

    `progress` is called now and then with the `sums` of all that was told. `work` is a function of a module, and
    what it is given can be pickled. The processes end with this one, whatever ends it. When one fails the others
    are told, by a GivenUpError when they next tell something, and the first failure is raised.
    """
    if jobs == 1:
        told = [0] * sums

        def tell(*more: int) -> None:
            told[:] = map(add, told, more)
            progress(*told)

        for given in givens:
            yield await work(*given, tell)
        return
    context = _context(work.__module__)
    done: SynchronizedArray[int] = context.Array("q", sums + 1)
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(name, done)) as pool:
        left = {loop.run_in_executor(pool, _run, work, given) for given in givens}
        try:
            while left:
                ready, left = await asyncio.wait(left, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                progress(*done[:_GIVEN_UP])
                for one in ready:
                    yield one.result()
        except BaseException:
            done[_GIVEN_UP] = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _context(module: str) -> ForkServerContext:
    """Processes forked from one that has imported `module` and runs nothing: they share the memory that takes.

    A fork of this process would have its event loop and its connections.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", module])
    return context


def _begin(name: str, done: "SynchronizedArray[int]") -> None:
    global _done  # noqa: PLW0603 # how a pool hands something to its processes
    _done = done
    gc.freeze()  # a collection would write to every page of what it has in common with the others
    log.configure(name)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """What a process that is gone has begun is rolled back; what nobody waits for would go on."""
    parent = parent_process()
    if parent is None:
        raise AssertionError("a process of a pool has a parent")
    parent.join()
    os._exit(1)


def _run(work: Callable[..., Awaitable[T]], given: tuple[Any, ...]) -> T:
    async def run() -> T:
        return await work(*given, _tell)

    return asyncio.run(run())


def _tell(*more: int) -> None:
    with _done.get_lock():
        if _done[_GIVEN_UP]:
            raise GivenUpError
        _done[:_GIVEN_UP] = list(map(add, _done[:_GIVEN_UP], more))
