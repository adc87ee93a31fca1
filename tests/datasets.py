"""Where the data sets are that tests re-enact: not here, they are other people's."""

from pathlib import Path

import pytest

from loadtests.trade.run import data_folder


def trade_data() -> Path:
    """The folder of the data sets; the test is skipped without one."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"there are no data sets in {folder} (TRADE_DATA)")
    return folder
