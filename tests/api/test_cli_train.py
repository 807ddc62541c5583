"""`vxl2 train`: its help is complete, and mistakes are reported before anything is loaded."""

import json

import pytest

from vxl2_jax.cli import main
from vxl2_jax.training import settings


def test_help_shows_all_settings_and_the_data(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert settings.EXAMPLE.strip() in shown
    assert '{"video": "a.mp4", "question": "Is there a dog?", "answer": "yes"}' in shown


def test_the_printed_settings_can_be_read(capsys, tmp_path):
    assert main(["train", "--print-config"]) == 0
    path = tmp_path / "train.toml"
    path.write_text(capsys.readouterr().out)
    assert settings.read(path).data.files == (str(tmp_path / "train.jsonl"),)
    assert main(["train", "--print-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["files"] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ('mode = "nano"', "unknown option 'mode'"),
        (settings.EXAMPLE, "train.jsonl: no such file"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.toml"
    if text is not None:
        path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "runs").exists()


def test_a_settings_file_is_required(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train"])
    assert exit_.value.code == 2 and "--config" in capsys.readouterr().err
