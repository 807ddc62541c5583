"""The checks that run for hours refuse wrong arguments at once, and find what they look for."""

import sys

import pytest
from clips import write_clip

from tests import kills, mutations, soak


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (kills, "nothing"),
        (kills, "--kills 0"),
        (soak, "--videos 9"),
        (soak, "--questions 9 --videos 10"),
        (soak, "--seed -1"),
        (mutations, "--films 0"),
    ],
)
def test_wrong_arguments_are_refused(monkeypatch, capsys, check, arguments):
    monkeypatch.setattr(sys, "argv", ["check", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


def test_films_are_read_refused_or_problems(tmp_path, monkeypatch):
    film, text = write_clip(tmp_path / "a.mp4", 10), tmp_path / "text.mp4"
    text.write_text("Once upon a time\n" * 50)
    assert mutations.try_film(film).kind == "read without notes" and mutations.try_film(text).kind == "refused"
    monkeypatch.setattr(mutations, "MEMORY_MB", 1)
    assert mutations.try_film(film).problem.endswith(" MB")
    monkeypatch.setattr(mutations, "SECONDS", 0.01)
    assert mutations.try_film(film).problem.startswith("not done")


def test_damaged_films_depend_on_their_number_and_the_seed_only():
    whole = {name: bytes(range(256)) * 20 for name in ("a.ts", "b.mp4")}
    films = {mutations.damaged(whole, number, seed) for number in range(20) for seed in (0, 1)}
    assert films == {mutations.damaged(whole, number, seed) for number in range(20) for seed in (0, 1)}
    assert len(films) > 30 and not {data for _, _, data in films} & set(whole.values())
