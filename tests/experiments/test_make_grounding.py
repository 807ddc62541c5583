"""What must be true of a generated grounding benchmark: read as the published ones are, it says when things are seen."""

import json

import numpy as np
import pytest

from experiments import make_grounding
from experiments.synthetic import clips, questions
from vxl2_jax.evaluation import grounding_data

SMALL = ["--clips", "2", "--seconds", "40", "60", "--size", "16", "--rate", "1", "--footage", ""]


@pytest.mark.parametrize("form", ["charades_sta", "qvhighlights"])
def test_both_forms_are_read_back_with_their_videos(form, tmp_path):
    out = tmp_path / "made"
    assert make_grounding.main(["--form", form, "--out", str(out), *SMALL]) == 0
    test, train = (grounding_data.read_moments(form, out / file)[0] for file in make_grounding._FILES[form])
    items = grounding_data.group_by_video(test, out / "videos")
    assert len(items) == 2 and all(item.path and item.moments for item in items)
    assert len({moment.video for moment in train}) == 8 and not {m.video for m in train} & {m.video for m in test}
    # Each clip is drawn anew, to see what it shows.
    clips = dict(make_grounding.draw(np.random.default_rng(0), form, "clip", 2, (40, 60), ""))
    for item in items:
        shown = questions.shows(clips[item.video])
        for moment in item.moments:
            events = shown[moment.query.split()[1]]
            room = 0 if form == "charades_sta" else make_grounding.CLIP_S
            assert len(moment.windows) == len(events) and (room or len(events) == 1)
            for (start, stop), event in zip(moment.windows, events, strict=True):
                assert start <= event.start_s < start + (room or 1e-6) and stop - (room or 1e-6) < event.stop_s <= stop


def test_queries_are_numbered_and_windows_lie_on_the_grid(tmp_path):
    out = tmp_path / "made"
    make_grounding.main(["--form", "qvhighlights", "--out", str(out), *SMALL])
    rows = [json.loads(line) for line in (out / "highlight_val_release.jsonl").read_text().splitlines()]
    assert [row["qid"] for row in rows] == list(range(len(rows)))
    for row in rows:
        steps = sum(-(-stop // 2) - start // 2 for start, stop in row["relevant_windows"])
        assert steps == len(row["relevant_clip_ids"]) and str(row["duration"]) in row["vid"]
        assert all(start < stop <= row["duration"] for start, stop in row["relevant_windows"])


def test_a_window_ends_with_a_clip_of_odd_length():
    rng = np.random.default_rng(0)
    clip = clips.Clip(41.0, (clips._event(rng, "dog", 3.5, 9.0), clips._event(rng, "cat", 33.0, 41.0)), ())
    dog, cat = map(json.loads, make_grounding.qvhighlights("v", clip, 0))
    assert dog["relevant_windows"] == [[2, 10]] and dog["relevant_clip_ids"] == [1, 2, 3, 4]
    assert cat["relevant_windows"] == [[32, 41]] and cat["relevant_clip_ids"] == [16, 17, 18, 19, 20]
    assert cat["duration"] == 41


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        make_grounding.main(["--form", "charades_sta", "--out", str(tmp_path)])
    assert end.value.code == 2 and "is there already" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    out, rendered = tmp_path / "made", []

    def broken(clip, path, size, rate):
        rendered.append(path)
        path.write_bytes(b"video")
        assert not out.exists()
        if len(rendered) == 2:
            raise OSError("disk full")

    monkeypatch.setattr(make_grounding.encode, "render_mp4", broken)
    command = ["--form", "charades_sta", "--out", str(out), *SMALL]
    assert make_grounding.main(command) == 1 and "disk full" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert make_grounding.main(command) == 0
    assert {path.name for path in out.iterdir()} == {"videos", *make_grounding._FILES["charades_sta"]}
    assert list(tmp_path.iterdir()) == [out]
