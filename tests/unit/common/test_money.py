import json

import pytest

from services.common import money


def test_amounts_at_the_bound_survive_json_as_a_double() -> None:
    assert int(float(money.AMOUNT_MAX)) == money.AMOUNT_MAX
    assert float(money.AMOUNT_MAX + 1) == float(money.AMOUNT_MAX + 2)  # past it, numbers fall together
    assert json.loads(json.dumps(money.AMOUNT_MAX)) == money.AMOUNT_MAX


def test_the_dearest_line_fits_a_bigint() -> None:
    assert money.PRICE_MAX * 1_000_000 < 2**63


@pytest.mark.parametrize(("code", "decimals"), [("USD", 2), ("EUR", 2), ("JPY", 0), ("KWD", 3), ("ISK", 0), ("TND", 3)])
def test_decimals_are_those_of_iso_4217(code: str, decimals: int) -> None:
    assert money.DECIMALS[code] == decimals


def test_codes_are_three_capitals_and_no_metal_fund_or_test_code() -> None:
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in money.DECIMALS)
    assert not money.DECIMALS.keys() & {"XXX", "XTS", "XAU", "XDR", "CHE", "DEM"}
    assert len(money.DECIMALS) > 150
