"""docs/states.md: what is committed is what TRANSITIONS gives, and what it draws is what orders do."""

import re

from services.cli import states
from services.contracts.orders import OrderStatus, PaymentStatus
from services.orders.domain import ALLOWED_ACTIONS


def test_the_committed_file_is_what_the_code_says() -> None:
    assert states.FILE.read_text(encoding="utf-8") == states.rendered(), "run `python -m services.cli.states`"


def drawn(section: str) -> list[tuple[str, str, str]]:
    """The arrows of its diagram: from, to, and the first word of what they say."""
    return re.findall(r"^    (\w+) --> (\w+): (\w+)", states.rendered().partition(f"## {section}\n")[2], re.MULTILINE)


def test_the_diagram_has_an_arrow_for_each_allowed_action_and_no_other() -> None:
    arrows = [arrow for arrow in drawn("status") if arrow[0] in list(OrderStatus)]
    for status in OrderStatus:
        named = {name for source, _, name in arrows if source == status} - {"once"}
        assert named == set(ALLOWED_ACTIONS[status])
    assert ("pending", "confirmed", "once") in arrows
    assert ("delivered", "partially_returned", "return") in arrows
    assert ("partially_shipped", "partially_shipped", "ship") in arrows
    assert len(arrows) == len(set(arrows))


def test_what_an_order_that_is_paid_goes_through_is_drawn() -> None:
    arrows = drawn("payment_status")
    for arrow in (
        ("unpaid", "authorized", "payment_authorized"),
        ("authorized", "partially_captured", "payment_captured"),
        ("partially_captured", "captured", "payment_captured"),
        ("captured", "partially_refunded", "refunded"),
        ("partially_refunded", "refunded", "refunded"),
        ("authorized", "voided", "payment_voided"),
        ("unpaid", "failed", "payment_failed"),
    ):
        assert arrow in arrows
    assert {end for arrow in arrows for end in arrow[:2]} == set(PaymentStatus) - {PaymentStatus.ON_ACCOUNT}
