"""Temporal grounding: spans, their metrics, annotation files, runs and reports."""

import json

import numpy as np
import pytest

from vxl2_jax.batch import JobResult
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.evaluation import grounding, grounding_data, grounding_report, grounding_run
from vxl2_jax.generate import Answer, Chunk
from vxl2_jax.layout import PrefillRule

from .standin import UnloadedModel, empty_memory


def windows(*pairs):
    return np.array(pairs, float)


@pytest.mark.parametrize(
    "response, times",
    [
        ("From 12.3 to 24.5 seconds.", (12.3, 24.5)),
        ("12s - 24s", (12, 24)),
        ("It happens between 12 and 24 seconds", (12, 24)),
        ("00:12 - 01:24", (12, 84)),
        ("1:02:03 to 1:02:10", (3723, 3730)),
        ("1 minute 20 seconds until 2 minutes", (80, 120)),
        ("start: 12, end: 24", (12, 24)),
        ("[12.0, 24.0]", (12, 24)),
        ("It starts at 12 seconds and ends at 24 seconds", (12, 24)),
        ("2 people, from 5 to 9 seconds", (5, 9)),
        ("2 and 3 dogs, from 5 s to 9 s", (5, 9)),
        ("from 24 to 12 seconds", (12, 24)),
        ("from 1 to 2 minutes", (60, 120)),
        ("between 1.5 and 2 min", (90, 120)),
        ("1 - 2 minutes 30 seconds", (60, 150)),
        ("from 30 to 2 minutes", (30, 120)),
        ("from 30 s to 2 minutes", (30, 120)),
        ("from the 5th to the 12th second", (5, 12)),
        ("from the 1st second until the 2nd second", (1, 2)),
        ("the 2nd and 3rd dogs, from the 5th to the 9th second", (5, 9)),
        ("the 2nd dog, at 7 seconds", (7,)),
        ("It starts at 12 seconds and lasts 5 seconds", (12,)),
        ("at 24 seconds", (24,)),
        ("clip7.mp4 shows it at second 3", (3,)),
        ("It never happens.", ()),
    ],
)
def test_times_are_read_from_responses(response, times):
    assert grounding.read_times(response) == times


def test_a_start_alone_is_a_span_only_if_its_length_is_given_and_spans_end_with_the_video():
    assert grounding.answer_span("at 24 seconds", 60) is None
    assert grounding.answer_span("at 24 seconds", 60, length=10) == (24, 34)
    assert grounding.answer_span("from 50 to 90 seconds", 60, length=10) == (50, 60)
    assert grounding.span_iou(grounding.answer_span("from 70 to 90 seconds", 60), windows((50, 60))) == 0


def test_attention_spans_reach_from_the_peak_to_the_first_gap():
    chunks = [[4 * i, 4 * i + 4, score] for i, score in enumerate((0.6, 0.1, 0.5, 1.0, 0.6, 0.49, 0.9))]
    assert grounding.attended_span(chunks, 0.5) == (8, 20)
    assert grounding.attended_span(chunks, 0.49) == (8, 28)
    assert grounding.attended_span(chunks, 1.0) == (12, 16)
    assert grounding.attended_span(chunks, 0.0) == (0, 28)


def test_the_window_that_fits_best_counts():
    assert grounding.span_iou((10, 20), windows((15, 25))) == pytest.approx(5 / 15)
    assert grounding.span_iou((10, 20), windows((15, 25), (12, 20))) == pytest.approx(0.8)
    assert grounding.span_iou((10, 20), windows((20, 30))) == 0 and grounding.span_iou(None, windows((20, 30))) == 0


def test_metrics_count_thresholds_that_are_just_reached_and_contain_the_mean():
    ious = [0.3, 0.5, 0.7, 0.0]
    found = grounding.metrics(ious, ["a", "a", "b", "c"], seed=1)
    assert [found[f"r1@{t}"]["right"] for t in (0.3, 0.5, 0.7)] == [3, 2, 1]
    assert found["miou"]["percent"] == 37.5
    low, high = found["miou"]["interval"]
    assert low < 37.5 < high and found == grounding.metrics(ious, ["a", "a", "b", "c"], seed=1)
    # Of a single video every bootstrap sample is the same.
    assert grounding.metrics(ious, ["a"] * 4, seed=1)["miou"]["interval"] == [37.5, 37.5]


def test_random_ious_agree_with_sampled_spans():
    true, rng = windows((10, 18), (40, 44)), np.random.default_rng(0)
    starts = rng.uniform(0, 50, 20_000)
    sampled = grounding.iou(np.stack([starts, starts + 10], axis=1), true)
    found = grounding.random_ious(10, 60, true)
    assert found.mean() == pytest.approx(sampled.mean(), abs=0.005)
    assert (found >= 0.3).mean() == pytest.approx((sampled >= 0.3).mean(), abs=0.01)
    assert grounding.random_ious(90, 60, windows((0, 30))) == pytest.approx(np.full(1001, 0.5))


def test_questions_contain_the_sentence_or_its_subject():
    assert '"a dog barks"?' in grounding.fill_template(grounding.TEMPLATE, "a dog barks.")
    assert (
        grounding.fill_template("When does {subject} first appear?", "the dog appears.")
        == "When does the dog first appear?"
    )
    for template in ("When?", "When does {it} happen?", "When {query", "{query.x}", "{query[x]}", "{}"):
        with pytest.raises(RequestError, match="template"):
            grounding.fill_template(template, "a dog barks")


def test_charades_sta_is_read_as_published(tmp_path):
    file = tmp_path / "charades_sta_test.txt"
    file.write_text("AB12C 24.3 30.4##a person waves.\nXY9 0.0 6##someone # sits\nAB12C 5.0 5.0##nothing happens.\n\n")
    found, left_out = grounding_data.read_moments("charades_sta", file)
    assert [(m.video, m.query, m.windows) for m in found] == [
        ("AB12C", "a person waves.", ((24.3, 30.4),)),
        ("XY9", "someone # sits", ((0.0, 6.0),)),
    ]
    assert left_out == 1 and grounding_data.mean_length(found) == pytest.approx(6.05)


def test_without_a_training_split_a_random_span_has_the_mean_length_of_the_asked_windows(tmp_path):
    lines = ["A 0.0 4.0##it starts.", "B 0.0 10.0##it goes on.", "A 4.0 10.0##it ends."]
    file = tmp_path / "sta.txt"
    file.write_text("\n".join(lines))
    items = grounding_data.group_by_video(grounding_data.read_moments("charades_sta", file)[0], tmp_path, limit=1)
    seconds, whose = grounding_data.random_span_length("charades_sta", items, None)
    assert seconds == pytest.approx(5.0) and "this run" in whose
    seconds, whose = grounding_data.random_span_length("charades_sta", items, file)
    assert seconds == pytest.approx(20 / 3) and "training" in whose


def test_qvhighlights_is_read_as_published_and_its_videos_are_found(tmp_path):
    rows = [
        {
            "qid": 7,
            "query": "a goal",
            "vid": "x_60.0_210.0",
            "duration": 150,
            "relevant_windows": [[0, 4], [10, 12]],
            "relevant_clip_ids": [0, 1, 5],
            "saliency_scores": [[4, 4, 4]] * 3,
        },
        {"qid": 8, "query": "a foul", "vid": "gone_0.0_150.0", "duration": 150, "relevant_windows": [[0, 4]]},
    ]
    file = tmp_path / "val.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x_60.0_210.0.mp4").write_bytes(b"video")
    found, _ = grounding_data.read_moments("qvhighlights", file)
    here, gone = grounding_data.group_by_video(found, tmp_path)
    assert here.path.name == "x_60.0_210.0.mp4" and here.moments[0].windows == ((0.0, 4.0), (10.0, 12.0))
    assert gone.path is None and "gone_0.0_150.0" in gone.problem


@pytest.mark.parametrize(
    "annotation_format, text, words",
    [
        ("charades_sta", "AB12C 24.3##a person waves.", "row 1: must be"),
        ("charades_sta", "AB12C 1 2##fine.\nAB12C x 30.4##a person waves.", "row 2: a time must be a number"),
        ("charades_sta", "AB12C 1 nan##a person waves.", "a time must be"),
        ("charades_sta", "AB12C 3 2##a person waves.", "no sentence with a window"),
        ("qvhighlights", '{"qid": 1, "query": "q", "vid": "v", "duration": 9}', "validation split"),
        (
            "qvhighlights",
            '{"qid": 1, "query": "q", "vid": "v", "duration": 9, "relevant_windows": [[1]]}',
            "two numbers",
        ),
        ("tacos", "", "'tacos'"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, annotation_format, text, words):
    (tmp_path / "file").write_text(text)
    with pytest.raises(RequestError, match=words) as error:
        grounding_data.read_moments(annotation_format, tmp_path / "file")
    assert "\n" not in str(error.value)


def test_the_report_counts_both_predictors_guesses_and_failures(tmp_path):
    settings = {
        "benchmark": "charades_sta",
        "mode": "dense",
        "videos": 3,
        "moments": 3,
        "left_out": 0,
        "template": grounding.TEMPLATE,
        "watch": {},
        "ask": {},
    }
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings, "made_with": {}}))
    chunks = [[0, 10, 0.1], [10, 20, 0.8], [20, 40, 0.1]]
    asked = {"id": "1", "query": "q", "windows": [[10, 20]], "chunks": chunks}
    answers = [asked | {"response": response} for response in ("from 10 to 20 seconds", "at 10 seconds")]
    rows = [
        {"index": 0, "video": "a", "end_s": 40.0, "answers": answers},
        {"index": 1, "video": "b", "error": "b: no such video"},
    ]
    (tmp_path / "rows.0-of-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = grounding_report.write(tmp_path, grounding_report.SpanOptions(random_length=10.0))
    assert data["predictors"]["text"]["r1@0.7"]["percent"] == 50 and data["unread"] == 1
    assert data["predictors"]["attention"]["miou"]["percent"] == 100
    assert data["chance"]["whole video"]["miou"]["percent"] == 25 and not data["complete"]
    with_length = grounding_report.write(tmp_path, grounding_report.SpanOptions(length=5.0, random_length=10.0))
    assert with_length["predictors"]["text"]["miou"]["percent"] == 75 and with_length["unread"] == 0
    assert with_length["reading"] == {"fraction": 0.5, "said_s": 5.0, "random_s": 10.0, "random_from": "", "seed": 0}
    text = (tmp_path / "report.md").read_text()
    assert "1 videos could not be watched, and 1 are still to be done" in text and "b: no such video" in text
    assert (tmp_path / "report.png").stat().st_size > 1000


class StandIn(UnloadedModel):
    """Everything happens from 4 to 8 seconds; videos with the content b"broken" cannot be watched."""

    config = ModelConfig(resized_grid=8)  # 16 visual tokens per group

    def answer_all(self, jobs, *, watch, ask):
        chunks = tuple(Chunk(4.0 * i, 4.0 * i + 4, float(i == 1), True) for i in range(5))
        for job in jobs:
            if job.video.read_bytes() == b"broken":
                yield JobResult(job, error=VideoError(f"{job.video.name}: cannot be read"))
                continue
            self.prompts += job.questions
            answers = [
                RequestError("too long")
                if "it waits" in text
                else Answer(text, "from 4 to 8 seconds", (1,), True, chunks, 1, 1, {})
                for text in job.questions
            ]
            yield JobResult(job, tuple(answers), empty_memory(20, PrefillRule(4, 3)), {})


def test_a_run_resumes_and_counts_videos_that_cannot_be_watched(tmp_path):
    videos, out, model = tmp_path / "videos", tmp_path / "out", StandIn()
    videos.mkdir()
    lines = [
        "A 4.0 8.0##it starts.",
        "B 4 12##it goes on.",
        "A 10 18##it ends.",
        "C 0 4##never seen.",
        "D 0 4##not there.",
        "A 0 9##it waits.",
    ]
    (tmp_path / "sta.txt").write_text("\n".join(lines))
    for name in "ABC":
        (videos / f"{name}.mp4").write_bytes(b"broken" if name == "C" else b"video")
    found, left_out = grounding_data.read_moments("charades_sta", tmp_path / "sta.txt")

    def go(compression=4, **changed):
        ask = {"relevance": "attention", "top_k": None} | changed
        run = grounding_run.GroundingRun(
            "charades_sta",
            grounding_data.group_by_video(found, videos),
            "dense",
            grounding.TEMPLATE,
            {"fps": 1.0, "compression": compression},
            ask,
            left_out,
        )
        grounding_run.evaluate(run, lambda: model, out)
        return grounding_report.write(out, grounding_report.SpanOptions(random_length=5.0))

    # Invalid options do not claim the folder.
    for changed in ({"compression": 17}, {"relevance": "atention"}):
        with pytest.raises(RequestError, match="compression must|unknown relevance"):
            go(**changed)
    data = go()
    assert data["predictors"]["text"]["r1@0.7"]["right"] == 1 and data["predictors"]["text"]["r1@0.5"]["right"] == 2
    assert data["predictors"]["attention"] == data["predictors"]["text"] and data["complete"]
    assert {failure["video"] for failure in data["failures"]} == {"C", "D"} and data["moments"] == 3
    assert data["failed_questions"] == [{"video": "A", "question": "it waits.", "error": "too long"}]
    assert sum("it starts" in text for text in model.prompts) == 1 and "folder" not in (out / "report.md").read_text()
    rows = out / "rows.0-of-1.jsonl"
    kept = [line for line in rows.read_text().splitlines(True) if '"video": "B"' not in line]
    rows.write_text("".join(kept) + '{"index": 1, "vid')
    (videos / "C.mp4").write_bytes(b"fixed")
    model.prompts.clear()
    again = go()
    assert len(model.prompts) == 2 and again["moments"] == 4 and len(again["failures"]) == 1
    with pytest.raises(RequestError, match="top_k"):
        go(top_k=2)
