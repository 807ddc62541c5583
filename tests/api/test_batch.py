"""A queue of videos with questions, in Python and with `vxl2 batch`."""

import json

import pytest

from vxl2_jax import Job, TooLongError, VideoError, cli, generate, ingest
from vxl2_jax.errors import RequestError
from vxl2_jax.storage.locking import open_locked

from .conftest import ASKED, SHORT, noise
from .test_questions import QUESTIONS


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


def test_a_queue_is_answered_as_one_by_one(model, clip):
    options = {"watch": {}, "ask": ASKED}
    videos = [clip, noise(40), "no/such.mp4", clip]
    taken = []

    def queue():
        for number, video in enumerate(videos):
            taken.append(number)
            yield Job(video, [*QUESTIONS[:3], f"is there {number}?"])

    for number, done in enumerate(model.answer_all(queue(), **options)):
        assert len(taken) <= number + 2, "no more than one video ahead"
        if number == 2:
            assert isinstance(done.error, VideoError) and not done.answers
            continue
        memory = model.watch(videos[number], **options["watch"])
        assert list(done.answers) == model.ask(memory, list(done.job.questions), **options["ask"])
        assert {"read", "vision", "prefill"} <= done.timings.keys()
    assert taken == [0, 1, 2, 3]


def test_a_wrong_choice_is_one_refused_question_and_wrong_lists_fail_before_the_video_is_opened(model, monkeypatch):
    asked = ["what?", "where?"]
    (done,) = model.answer_all([Job(noise(9), asked, [["a", "b"], ["a", " "]])], ask={"chunk_size": 1})
    assert done.answers[0].text in ("a", "b") and isinstance(done.answers[1], RequestError)
    monkeypatch.setattr("vxl2_jax.batch._open", lambda *_: pytest.fail("opened"))
    for choices in ([["a"]], [["a"], []], ["a", "b"]):
        (done,) = model.answer_all([Job("a.mp4", asked, choices)])
        assert isinstance(done.error, RequestError) and "choices" in str(done.error)


@pytest.mark.parametrize("options", [{"ask": {"top_k": -1}}, {"watch": {"fps": 0}}])
def test_a_wrong_option_stops_the_queue_before_a_video_is_opened(model, options):
    def queue():
        raise AssertionError("opened")
        yield

    with pytest.raises(RequestError, match="top_k|fps"):
        list(model.answer_all(queue(), **options))


def test_batch_resumes_with_the_missing_lines(command, model_dir, jobs, tmp_path):
    out = tmp_path / "answers.jsonl"
    arguments = ("batch", jobs, "--out", out, "--model", model_dir, *SHORT, "--quiet")
    code, _, error = command(*arguments)
    assert code == 2 and error.count("\n") == 1 and "1 of 3" in error
    first = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["job"] for row in first] == [json.loads(line) for line in jobs.read_text().splitlines()]
    assert len(first[0]["answers"]) == 2 and first[0]["video"]["frames"] == 8
    assert "no such file" in first[1]["error"]

    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + lines[2][: len(lines[2]) // 2])  # killed while it wrote the third line
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    code, text, _ = command(*arguments)
    assert code == 0 and "3 videos, 1 answered before, 0 failed" in text
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["job"] for row in again] == [row["job"] for row in first]
    answers = [[[answer["answer"] for answer in row.get("answers", ())] for row in rows] for rows in (first, again)]
    assert answers[0][0] == answers[1][0] and answers[0][2] == answers[1][2]
    before = out.read_text()
    assert command(*arguments).code == 0 and out.read_text() == before


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_equal_jobs_and_jobs_with_our_field_names_stay_apart(command, model_dir, clip, tmp_path):
    same = {"video": str(clip), "questions": ["what?"]}
    given = [same, same, {**same, "id": 1}, {"id": 2, **same, "model": "x", "answers": 3, "error": "none"}]
    (tmp_path / "jobs").write_text("".join(json.dumps(row) + "\n" for row in given))
    arguments = ("batch", tmp_path / "jobs", "--out", tmp_path / "out", "--model", model_dir, *SHORT, "--quiet")
    assert command(*arguments).code == 0
    whole = (tmp_path / "out").read_text().splitlines(keepends=True)
    assert [json.loads(line)["job"] for line in whole] == given
    for left_out in range(len(given)):
        (tmp_path / "out").write_text("".join(line for number, line in enumerate(whole) if number != left_out))
        assert command(*arguments).code == 0
        rows = rows_of(tmp_path / "out")
        assert len(rows) == len(given) and rows[-1]["job"] == given[left_out] and rows[-1]["answers"]


def test_a_run_killed_at_any_byte_resumes(tmp_path):
    """At any byte of the file, what is read is complete lines, and the rest is recognised as ours."""
    jobs = [{"video": "é.mp4", "questions": ["what?"], "job": "\u2028", "model": 7}, "not a job"]
    content = "".join(json.dumps({"job": job, "model": "m", "answers": [{"answer": "\n"}]}) + "\n" for job in jobs)
    lines = [cli.batch._Line(jobs[0], None), cli.batch._Line(jobs[1], "not a job")]
    for length in range(len(content) + 1):
        (tmp_path / "out").write_text(content[:length])
        with open_locked(tmp_path / "out") as file:
            found, failed = cli.batch._read_answers(file, tmp_path / "out", lines)
        whole = content[:length].count("\n")
        assert (
            found.total() == whole
            and not failed
            and (tmp_path / "out").read_text() == "".join(content.splitlines(True)[:whole])
        )
        assert cli.batch._missing(lines, found) == lines[whole:]


def test_bad_lines_are_failed_rows_and_the_others_are_answered(command, model_dir, clip, tmp_path):
    good = {"video": str(clip), "questions": ["what?"]}
    bad = [
        "{",
        '{"video": 3, "questions": ["what?"]}',
        json.dumps({**good, "questions": ["what?", "x " * 40_000]}),
        "5",
    ]
    text = "\n".join(
        ["\ufeff" + bad[0], json.dumps(good), *bad[1:], json.dumps({**good, "id": "a\u2028b"}, ensure_ascii=False)]
    )
    (tmp_path / "jobs").write_text(text, encoding="utf-8")
    arguments = ("batch", tmp_path / "jobs", "--out", tmp_path / "out", "--model", model_dir, *SHORT, "--quiet")
    for _ in range(2):  # the same is reported when nothing is left to do
        code, text, error = command(*arguments)
        assert code == 2 and "4 of 6 jobs failed" in error and error.count("\n") == 1 and "4 failed" in text
        rows = rows_of(tmp_path / "out")
        assert ["error" in row for row in rows] == [True, False, True, False, True, False]
        assert "line 1" in rows[0]["error"] and "line 3" in rows[2]["error"]
        # The job's other question is answered.
        assert [one["question"] for one in rows[3]["answers"]] == ["what?"] and "32,768" in rows[3]["refused"][0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 8 GB")])
def test_too_little_memory_is_one_failed_job(model, monkeypatch, error):
    ask_many, jobs = generate.ask_many, [Job(noise(8), ["what?"]), Job(noise(8), ["is it?"]), Job(noise(8), ["what?"])]

    def fail(model, memory, questions, options, history=()):
        if questions == ["is it?"]:
            raise error
        return ask_many(model, memory, questions, options, history)

    monkeypatch.setattr(generate, "ask_many", fail)
    done = list(model.answer_all(jobs, ask={"max_new_tokens": 2}))
    assert [type(result.error) for result in done] == [type(None), TooLongError, type(None)]
    assert [len(result.answers) for result in done] == [1, 0, 1]


def test_a_video_too_long_for_the_memory_does_not_stop_the_queue(model, clip, monkeypatch):
    monkeypatch.setattr(ingest.hardware, "memory_bytes", lambda device: 1)
    (done,) = model.answer_all([Job(clip, "what?")])
    assert isinstance(done.error, TooLongError) and "40 frames need" in str(done.error)


def test_one_question_may_stand_alone(model):
    (done,) = model.answer_all([Job(noise(8), "what?")], ask={"max_new_tokens": 2})
    assert [answer.question for answer in done.answers] == ["what?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"video": "a.mp4", "questions": "what?"}\n', "line 1: not a job"),
        ('{"video": "a.mp4"}\n', "line 1: not a job"),
        ('{"video": "a.mp4", "questions": [" "]}\n', "line 1: not a job"),
        ("what?\n", "line 1: not JSON"),
        ("", "holds no job"),
        (None, "no such file"),
    ],
)
def test_bad_jobs_are_one_line(command, model_dir, tmp_path, text, message):
    if text is not None:
        (tmp_path / "jobs").write_text(text)
    code, _, error = command("batch", tmp_path / "jobs", "--out", tmp_path / "out", "--model", model_dir)
    assert code == 2 and error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"my notes\n",
        b"my notes",
        b'{"a": 1}',
        b'{"job": 1, "video": "a.mp4", "questions": ["what?"]}',
        b'{"video": "a.mp4", "questions": ["what?"]}',
        b'{"video": "a.mp4", "questions": ["what?"]}\n',
        b'{"video": "another.mp4", "questions": ["what?"], "mod',
        b"\xff\xd8\x00",
        "jobs",
    ],
)
def test_a_file_that_is_no_file_of_answers_is_left_alone(command, model_dir, jobs, tmp_path, content):
    content = jobs.read_bytes() if content == "jobs" else content
    (tmp_path / "precious").write_bytes(content)
    code, _, error = command("batch", jobs, "--out", tmp_path / "precious", "--model", model_dir)
    assert code == 2 and "not a file of answers" in error and error.count("\n") == 1
    assert (tmp_path / "precious").read_bytes() == content


def test_an_incomplete_line_of_an_earlier_version_is_removed(tmp_path):
    job = {"video": "é.mp4", "questions": ["what?"], "model": 7}
    row = json.dumps({**job, "model": "nano", "frames": 9})
    for length in range(1, len(row)):
        (tmp_path / "out").write_text(row[:length])
        with open_locked(tmp_path / "out") as file:
            found, _ = cli.batch._read_answers(file, tmp_path / "out", [cli.batch._Line(job, None)])
        assert not found and not (tmp_path / "out").read_text()


@pytest.mark.parametrize("length", [1, 10, 60])
def test_an_incomplete_first_line_is_replaced(command, model_dir, tmp_path, clip, length):
    row = {"video": str(clip), "questions": ["what, überhaupt?"]}
    (tmp_path / "jobs").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    out = tmp_path / "answers"
    out.write_text((json.dumps({"job": row})[:-1] + ', "model": "x"')[:length])
    assert command("batch", tmp_path / "jobs", "--out", out, "--model", model_dir, *SHORT, "--quiet").code == 0
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["answers"][0]["question"] == row["questions"][0]
