"""`vxl2 chat`: questions from a terminal or a pipe, commands, and an answer that is stopped."""

import io
import json

import pytest
import toys

from vxl2_jax.answer import Answer, Chunk
from vxl2_jax.api import Model
from vxl2_jax.cli import chat
from vxl2_jax.errors import RequestError

from .conftest import SHORT


class Pieces:
    """A stream that gives its pieces, of which an exception is raised."""

    def __init__(self, question, *pieces):
        self.question, self.pieces, self.answer = question, pieces, None

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        chunks = (Chunk(0.0, 4.0, 0.5, True), Chunk(4.0, 8.0, 0.25, False))
        self.answer = Answer(self.question, "".join(self.pieces), (1,), True, chunks, 5, 10, {"decode": 1.0})


class Talker(Model):
    """A model without parameters, which records what it was asked."""

    def __init__(self):
        self.asked = []

    def stream(self, memory, question, *, history, **ask):
        self.asked.append((question, [answer.question for answer in history]))
        failures = {"stop?": KeyboardInterrupt(), "full?": MemoryError(), "bad?": RequestError("it is bad")}
        return Pieces(question, "a ", failures.get(question, "dog\x1b"))


@pytest.fixture
def talk(toy, monkeypatch):
    def run(*lines, follow=True, typed=True, json=False):
        model = Talker()
        one = chat.Chat(model, toys.remembered(toy, toys.video()), {}, follow, json, typed, lambda: ((), ()))
        ended = [line for line in lines if not one.take(line)]
        return one, model, ended

    return run


def test_questions_follow_up_unless_they_stand_alone(talk):
    _, model, _ = talk("one?", "two?", "/new", "three?")
    assert model.asked == [("one?", []), ("two?", ["one?"]), ("three?", [])]
    _, model, _ = talk("one?", "two?", follow=False)
    assert model.asked == [("one?", []), ("two?", [])]


def test_a_stopped_or_failed_answer_is_not_part_of_the_conversation(talk, capsys):
    one, model, _ = talk("one?", "stop?", "full?", "bad?", "two?")
    assert model.asked[-1] == ("two?", ["one?"]) and (one.taken, one.failed) == (5, 2)
    out, err = capsys.readouterr()
    assert "stopped" in out and err.count("\n") == 2 and "it is bad" in err and "\x1b" not in out


def test_an_interrupt_ends_a_chat_from_a_pipe(talk):
    with pytest.raises(KeyboardInterrupt):
        talk("stop?", typed=False)


def test_commands(talk, capsys, tmp_path):
    picture, memory = tmp_path / "a.png", tmp_path / "m"
    one, model, ended = talk(
        "/chunks",
        "one?",
        "/chunks",
        f"/plot {picture}",
        f"/save {memory}",
        f"/save {memory}",
        "/save",
        "/what",
        "/quit",
    )
    out, err = capsys.readouterr()
    assert ended == ["/quit"] and len(model.asked) == 1
    assert picture.read_bytes().startswith(b"\x89PNG") and memory.stat().st_size
    assert "4.0 – 8.0 s  sparse" in out
    assert one.failed == err.count("\n") == 4 and "ask a question first" in err and "exists already" in err


def test_from_a_pipe_each_answer_is_a_line(talk, capsys):
    talk("one?", "two?", typed=False)
    assert capsys.readouterr().out == "a dog\\x1b\n" * 2
    talk("one?", "two?", typed=False, json=True)
    assert [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()] == ["one?", "two?"]


def test_standard_output_has_only_answers_with_json(talk, capsys, tmp_path):
    talk("one?", "/chunks", "/help", f"/save\t{tmp_path / 'm'}", "/new", json=True, typed=False)
    out, err = capsys.readouterr()
    assert json.loads(out)["question"] == "one?" and "4.0 – 8.0 s" in err and "/quit" in err
    assert (tmp_path / "m").stat().st_size


def test_the_video_is_not_replaced_by_its_plot(talk, capsys, tmp_path):
    picture, other = tmp_path / "a.png", tmp_path / "link.png"
    picture.write_bytes(b"1")
    other.hardlink_to(picture)
    for video in (picture, tmp_path):
        one, _, _ = talk("one?")
        one.video = str(video)
        one.take(f"/plot {other}")
        assert one.failed == 1 and other.read_bytes() == b"1" and "the video itself" in capsys.readouterr().err


def test_lines_end_with_the_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one?\n\n \xff \n last"), encoding="utf-8"))
    assert list(chat._lines(typed=False)) == ["one?", "\udcff", "last"]  # as in names of files


def test_a_line_without_end_is_refused_and_not_kept(monkeypatch):
    monkeypatch.setattr(chat, "MAX_CHARACTERS", 10)
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 99 + "\none?\n" + "y" * 10 + "\n" + "z" * 50))
    assert list(chat._lines(typed=False)) == ["x" * 12, "one?", "y" * 10, "z" * 12]


def test_an_interrupt_at_the_prompt_ends_nothing(monkeypatch, capsys):
    typed = iter([KeyboardInterrupt(), "one?", EOFError()])

    def answer(prompt):
        found = next(typed)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr("builtins.input", answer)
    assert list(chat._lines(typed=True)) == ["one?"] and "Ctrl-D" in capsys.readouterr().out


def test_a_chat_from_the_command_line(command, model_dir, clip, monkeypatch):
    """nano's rule for follow-ups does not hold for other models, so the second question sees the first."""
    given = ("chat", clip, "--model", model_dir, *SHORT, "--json", "--quiet")
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n/nope\nis it?\n"))
    code, out, err = command(*given)
    assert code == 2 and [json.loads(line)["question"] for line in out.splitlines()] == ["what?", "is it?"]
    assert "/nope" in err and err.count("\n") == 2
    assert command("chat")[0] == command("chat", clip, "--memory", "m")[0] == 2
