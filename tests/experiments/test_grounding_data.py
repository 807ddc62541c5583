"""A generated grounding benchmark says when things are seen; datasets of videos resume and are never mixed."""

import json

import numpy as np
import pytest

from experiments.synthetic import clips, encode, grounding_rows, questions
from experiments.synthetic.__main__ import main
from experiments.synthetic.commands import arguments, grounding
from vxl2_jax.evaluation import grounding_data

SMALL = ["--clips", "2", "--seconds", "40", "60", "--size", "16", "--rate", "1", "--footage", ""]


def make(form, out, *flags):
    main(["grounding", "--form", form, "--out", str(out), *SMALL, *flags])


@pytest.mark.parametrize("form", ["charades_sta", "qvhighlights"])
def test_both_forms_are_read_back_with_their_videos(form, tmp_path):
    out = tmp_path / "made"
    make(form, out)
    test, train = (grounding_data.read_moments(form, out / file)[0] for file in grounding_rows.FILES[form])
    items = grounding_data.group_by_video(test, out / "videos")
    assert len(items) == 2 and all(item.path and item.moments for item in items)
    assert len({moment.video for moment in train}) == 8 and not {m.video for m in train} & {m.video for m in test}
    # Each clip is drawn again to see what it shows.
    parser = arguments.Parser()
    grounding.add_flags(parser)
    clips = grounding.draw(parser.parse_args(["--form", form, "--out", str(out), *SMALL])).videos
    for item in items:
        shown = questions.shows(clips[item.video])
        for moment in item.moments:
            events = shown[moment.query.split()[1]]
            room = 0 if form == "charades_sta" else grounding_rows.CLIP_S
            assert len(moment.windows) == len(events) and (room or len(events) == 1)
            for (start, stop), event in zip(moment.windows, events, strict=True):
                assert start <= event.start_s < start + (room or 1e-6) and stop - (room or 1e-6) < event.stop_s <= stop


def test_queries_are_numbered_and_windows_lie_on_the_grid(tmp_path):
    out = tmp_path / "made"
    make("qvhighlights", out)
    rows = [json.loads(line) for line in (out / "highlight_val_release.jsonl").read_text().splitlines()]
    assert [row["qid"] for row in rows] == list(range(len(rows)))
    for row in rows:
        steps = sum(-(-stop // 2) - start // 2 for start, stop in row["relevant_windows"])
        assert steps == len(row["relevant_clip_ids"]) and str(row["duration"]) in row["vid"]
        assert all(start < stop <= row["duration"] for start, stop in row["relevant_windows"])


def test_a_window_ends_with_a_clip_of_odd_length():
    rng = np.random.default_rng(0)
    clip = clips.Clip(41.0, (clips.draw_event(rng, "dog", 3.5, 9.0), clips.draw_event(rng, "cat", 33.0, 41.0)), ())
    dog, cat = map(json.loads, grounding_rows.qvhighlights("v", clip, 0))
    assert dog["relevant_windows"] == [[2, 10]] and dog["relevant_clip_ids"] == [1, 2, 3, 4]
    assert cat["relevant_windows"] == [[32, 41]] and cat["relevant_clip_ids"] == [16, 17, 18, 19, 20]
    assert cat["duration"] == 41


def test_other_files_and_other_settings_are_left_alone(tmp_path, capsys):
    other, made = tmp_path / "other", tmp_path / "made"
    other.mkdir()
    (other / "charades_sta_test.txt").write_text("mine")
    make("charades_sta", made)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, flags, problem in ((other, [], "holds other files"), (made, ["--seed", "1"], "seed 0 (now 1)")):
        with pytest.raises(SystemExit) as end:
            make("charades_sta", out, *flags)
        error = capsys.readouterr().err
        assert end.value.code == 2 and problem in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_interrupted_dataset_is_resumed(tmp_path, monkeypatch, capsys):
    out, rendered = tmp_path / "made", []

    def fails_once(clip, path, size, rate):
        rendered.append(path.name)
        if len(rendered) == 2:
            raise OSError("disk full")
        path.write_bytes(b"video")

    monkeypatch.setattr(encode, "render_mp4", fails_once)
    with pytest.raises(SystemExit):
        make("charades_sta", out)
    assert "disk full" in capsys.readouterr().err and {path.name for path in out.iterdir()} == {"videos"}
    make("charades_sta", out)
    assert rendered == ["CLIP000.mp4", "CLIP001.mp4", "CLIP001.mp4"]
    assert {path.name for path in out.iterdir()} == {"videos", *grounding_rows.FILES["charades_sta"]}
    assert "2 videos" in capsys.readouterr().out
