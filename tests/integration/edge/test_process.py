"""nginx as a part of a stack: it comes back, and leaves nothing."""

import json
import os

import psutil

from services.embedded.records import Record
from tests.edge import kept
from tests.faults.waiting import eventually
from tests.integration.edge.conftest import Scene


async def test_one_that_is_killed_comes_back_although_its_workers_still_have_the_port(scene: Scene) -> None:
    assert (await scene.edge.get("/v1/products")).status_code == 200
    assert scene.edge.child.pid is not None
    workers = psutil.Process(scene.edge.child.pid).children(recursive=True)
    assert workers
    await scene.edge.child.kill()

    async def back() -> bool:
        return scene.edge.child.restarts == 1 and scene.edge.child.ready.is_set()

    await eventually(back, "it serves again")
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    assert kept(await scene.edge.get("/v1/products")) == "hit", "what it kept is still good for its time"
    assert len(scene.catalog.requests) == 1


async def test_a_later_supervisor_knows_it_by_its_record_and_it_is_nobody_special(scene: Scene) -> None:
    home = scene.edge.edge.directory.parent
    process = Record(**json.loads((home / "run" / "edge.json").read_text())).process()
    assert process is not None
    assert process.pid == scene.edge.child.pid
    if os.geteuid() == 0:
        assert all(one.uids().effective != 0 for one in (process, *process.children()))
