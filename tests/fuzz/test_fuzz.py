"""A few dozen inputs of every kind; `make fuzz` draws for minutes."""

import pytest

from tests.fuzz.run import run
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_in_one_line(name):
    tally = run(TARGETS[name], 1, 60)
    assert tally.tried >= 30 and not tally.raw
