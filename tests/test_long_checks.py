"""The checks that run for hours refuse wrong arguments at once."""

import sys

import pytest

from tests import kills, soak


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (kills, "nothing"),
        (kills, "--kills 0"),
        (soak, "--videos 9"),
        (soak, "--questions 9 --videos 10"),
        (soak, "--seed -1"),
    ],
)
def test_wrong_arguments_are_refused(monkeypatch, capsys, check, arguments):
    monkeypatch.setattr(sys, "argv", ["check", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 2 and "error: " in capsys.readouterr().err
