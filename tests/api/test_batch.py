"""A queue of videos with questions, in Python and on the command line."""

import json

import pytest

from vxl2_jax import Job, TooLongError, VideoError, cli, ingest
from vxl2_jax.errors import RequestError

from .conftest import noise


@pytest.fixture
def jobs(clip, tmp_path):
    """A file of three jobs, the second of which has no video."""
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    rows = [
        {"video": "a.mp4", "questions": ["what?", "is there 7?"], "id": 1},
        {"video": "b.mp4", "questions": ["what?"]},
        {"video": str(clip), "questions": ["is there 9?"]},
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *args) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_a_queue_answers_as_one_by_one(model, clip):
    options = {"watch": {"max_frames": 20}, "ask": {"max_new_tokens": 3, "chunk_size": 1, "top_k": 1}}
    videos = [clip, noise(9), "no/such.mp4", clip]
    taken = []

    def queue():
        for number, video in enumerate(videos):
            taken.append(number)
            yield Job(video, ["what?", f"is there {number}?"])

    for number, done in enumerate(model.answer_all(queue(), **options)):
        assert len(taken) <= number + 2, "no more than one video ahead"
        if number == 2:
            assert isinstance(done.error, VideoError) and not done.answers
            continue
        memory = model.watch(videos[number], **options["watch"])
        assert list(done.answers) == model.ask(memory, list(done.job.questions), **options["ask"])
        assert {"read", "vision", "prefill"} <= done.timings.keys()
    assert taken == [0, 1, 2, 3]


def test_bad_options_stop_the_queue(model, clip):
    with pytest.raises(RequestError, match="top_k"):
        list(model.answer_all([Job(clip, ["what?"])], ask={"top_k": -1}))


def test_batch_goes_on_with_what_is_missing(capsys, model_dir, jobs, tmp_path):
    out = tmp_path / "answers.jsonl"
    command = ("batch", jobs, "--out", out, "--model", model_dir, "--max-new-tokens", 2, "--max-frames", 12, "--quiet")
    code, told, error = run(capsys, *command)
    assert code == 2 and error.count("\n") == 1 and "1 of 3 videos could not be watched" in error
    whole = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in whole] == ["a.mp4", "b.mp4", whole[2]["video"]]
    assert whole[0]["id"] == 1 and len(whole[0]["answers"]) == 2 and whole[0]["watched"]["frames"] == 12
    assert "no such file" in whole[1]["error"]

    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + lines[2][: len(lines[2]) // 2])  # killed while it wrote the third
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    code, told, error = run(capsys, *command)
    assert code == 0 and "3 videos, 1 of them were there, 0 could not be watched" in told
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in again] == [row["video"] for row in whole]
    answers = [[[answer["answer"] for answer in row.get("answers", ())] for row in rows] for rows in (whole, again)]
    assert answers[0][0] == answers[1][0] and answers[0][2] == answers[1][2]
    before = out.read_text()
    assert run(capsys, *command)[0] == 0 and out.read_text() == before


def test_a_video_too_long_for_the_memory_does_not_stop_the_queue(model, clip, monkeypatch):
    monkeypatch.setattr(ingest.hardware, "memory_bytes", lambda device: 1)
    (done,) = model.answer_all([Job(clip, "what?")])
    assert isinstance(done.error, TooLongError) and "40 frames need" in str(done.error)


def test_one_question_may_stand_alone(model):
    (done,) = model.answer_all([Job(noise(5), "what?")], ask={"max_new_tokens": 2})
    assert [answer.question for answer in done.answers] == ["what?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"video": "a.mp4", "questions": "what?"}\n', "line 1: not a job"),
        ('{"video": "a.mp4"}\n', "line 1: not a job"),
        ('{"video": "a.mp4", "questions": [" "]}\n', "line 1: not a job"),
        ("what?\n", "line 1: not a job"),
        (None, "cannot read the jobs"),
    ],
)
def test_bad_jobs_are_one_line(capsys, model_dir, tmp_path, text, message):
    if text is not None:
        (tmp_path / "jobs").write_text(text)
    code, told, error = run(capsys, "batch", tmp_path / "jobs", "--out", tmp_path / "out", "--model", model_dir)
    assert code == 2 and error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\n",
        b"my notes",
        b'{"a": 1}',
        b'{"video": "a.mp4", "questions": ["what?"]}\n',
        b"\xff\xd8\x00",
        "jobs",
    ],
)
def test_a_file_that_is_no_file_of_answers_is_left_alone(capsys, model_dir, jobs, tmp_path, content):
    content = jobs.read_bytes() if content == "jobs" else content
    (tmp_path / "precious").write_bytes(content)
    code, told, error = run(capsys, "batch", jobs, "--out", tmp_path / "precious", "--model", model_dir)
    assert code == 2 and "no file of answers" in error and error.count("\n") == 1
    assert (tmp_path / "precious").read_bytes() == content


@pytest.mark.parametrize("cut", [1, 10, 40, 60])
def test_the_first_line_cut_off_is_written_again(capsys, model_dir, tmp_path, clip, cut):
    row = {"video": str(clip), "questions": ["what, überhaupt?"]}
    (tmp_path / "jobs").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    out = tmp_path / "answers"
    out.write_text((json.dumps(row)[:-1] + ', "model": "x"')[:cut])
    command = ("batch", tmp_path / "jobs", "--out", out, "--model", model_dir, "--max-new-tokens", 1, "--max-frames", 4)
    assert run(capsys, *command, "--quiet")[0] == 0
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["answers"][0]["question"] == row["questions"][0]
