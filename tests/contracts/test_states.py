"""docs/states.md: what is committed is what TRANSITIONS gives, and what it draws is what orders do."""

import re

from services.cli import states
from services.contracts.orders import OrderStatus
from services.orders.domain import ALLOWED_ACTIONS


def test_the_committed_file_is_what_the_code_says() -> None:
    assert states.FILE.read_text(encoding="utf-8") == states.rendered(), "run `python -m services.cli.states`"


def test_the_diagram_has_an_arrow_for_each_allowed_action_and_no_other() -> None:
    arrows = re.findall(r"^    (\w+) --> (\w+): (\w+)", states.rendered(), re.MULTILINE)
    for status in OrderStatus:
        assert {name for source, _, name in arrows if source == status} == set(ALLOWED_ACTIONS[status])
    assert ("delivered", "partially_returned", "return") in arrows
    assert ("partially_shipped", "partially_shipped", "ship") in arrows
    assert len(arrows) == len(set(arrows))
