"""A broker that dies or freezes while orders are followed: nobody's WebSocket closes, and all of it is shown."""

import signal

import pytest

from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.supervisor import Stack
from tests.faults.load import loaded
from tests.faults.measured import metric
from tests.faults.outcome import assert_nothing_lost, assert_shown
from tests.faults.waiting import eventually

CLIENTS = 6
THINK_SECONDS = 0.15  # between an order's steps, so that what dies dies in the middle of them
BETWEEN_FAULTS = 12  # orders


async def test_while_the_gateway_lives_no_socket_notices_what_becomes_of_the_broker(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    given_up = f'follower_failures_total{{topic="{ORDERS_TOPIC}",what="kafka"}}'
    async with loaded(stack, CLIENTS, looks=True, think_seconds=THINK_SECONDS) as load:
        await load.more(BETWEEN_FAULTS)
        await stack.kill("kafka")
        await stack.ready("kafka")
        await load.more(BETWEEN_FAULTS)
        failures = await metric(stack, "realtime-gateway", given_up)
        stack.send_signal("kafka", signal.SIGSTOP)

        async def noticed() -> bool:
            return await metric(stack, "realtime-gateway", given_up) > failures

        await eventually(noticed, "the gateway gives its consumer up", seconds=30, every=0.2)
        stack.send_signal("kafka", signal.SIGCONT)
        await load.more(BETWEEN_FAULTS)
        await load.end()
        newest, _ = await assert_nothing_lost(stack, load)
        figures = await assert_shown(load, newest)
    assert stack.restarts["realtime-gateway"] == 0
    assert {screen.connections for screen in load.own + load.watching} == {1}
    for screen in load.own:
        assert all(had[0] == 1 for had in screen.had.values())
    with capsys.disabled():
        print(f"\n{figures}; {load.placed} orders; attempts met {dict(load.buyers.seen)}")  # noqa: T201 # figures
