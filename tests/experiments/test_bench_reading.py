"""The benchmark of reading: the packets that frames need, readers that cannot run, and a tiny film from end to end."""

import json

import av
import numpy as np
import pytest
from clips import write_clip

from experiments.bench import reading_worker
from experiments.bench.__main__ import main
from experiments.synthetic import reading_films
from experiments.synthetic.__main__ import main as synthetic
from vxl2_jax.video import open_video


@pytest.mark.parametrize(
    ("packets", "wanted", "runs"),
    [
        ([(0, True), (1, False), (2, True), (3, False)], {1, 3}, [(0, 1), (2, 3)]),
        ([(0, True), (3, False), (1, False), (2, False)], {0, 1}, [(0, 2)]),
        # An open group: the picture at 1 is stored after the key frame at 2 and needs what is before that.
        ([(0, True), (2, True), (1, False), (3, False)], {1, 3}, [(0, 3)]),
        ([(0, True), (2, True), (1, False), (3, False)], {3}, [(1, 3)]),
    ],
)
def test_runs_are_what_the_frames_need(packets, wanted, runs):
    assert reading_worker.needed_runs(packets, wanted) == runs


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"g": "20", "keyint_min": "20", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}),
        ("webm", {"codec": "libvpx-vp9", "g": "20", "cpu-used": "8"}),
    ],
)
def test_the_packets_needed_give_the_frames_of_decoding_through(tmp_path, suffix, options):
    path = write_clip(tmp_path / f"a.{suffix}", 90, **options)
    request = {"film": str(path), "indices": [0, 19, 20, 43, 89], "size": 32}
    found = np.concatenate(list(reading_worker.needed(request)[0]()))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(found, [reading_worker.resized(frames[i], 32) for i in request["indices"]])
    assert set(request["stages"]) == set(reading_worker.STAGES) and request["stages"]["decoding"] > 0


def test_reading_from_end_to_end(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    write_clip(films / "a.mp4", 60, g="20")
    others = ["--python-others=no-such-python", "--readers=opencv", f"--before={tmp_path}"]
    (tmp_path / "vxl2_jax" / "video").mkdir(parents=True)  # a checkout that holds nothing
    code = main(["reading", str(films), *others, "--samples=2", "--size=32", f"--out={tmp_path / 'out'}"])
    document = json.loads((tmp_path / "out" / "reading.json").read_text())
    assert code == 0 and document["complete"] and document["timings"] == "measured" and document["ceilings"] is None
    rows = {(row["name"], row["computes"]): row for row in document["rows"]}
    chosen = open_video(films / "a.mp4", size=32)
    ours = rows["ours", "CPU per frame"]
    assert ours["case"] == f"a.mp4, {len(chosen.indices)} of 60 frames" and not ours["wrong"] and ours["error"] == 0
    assert ours["seconds"] > 0 and len(ours["rounds"]) == 2
    assert 0 < rows["ours", "first batch"]["seconds"] < 60
    floor = sum(rows["packets needed", stage]["seconds"] for stage in ("decoding", "conversion", "resizing"))
    assert ours["details"]["floor_s"] == pytest.approx(floor) and ours["details"]["target_s"] > floor > 0
    assert "no-such-python does not run" in rows["opencv", "CPU per frame"]["note"]
    assert rows["ours before", "CPU per frame"]["note"].startswith("not run: ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"reading.{kind}" for kind in ("json", "md", "png")]


@pytest.mark.parametrize("arguments", [["--before=nowhere"], []])
def test_nothing_to_compare_or_to_read_is_one_line(tmp_path, capsys, arguments):
    if arguments:
        write_clip(tmp_path / "a.mp4", 3)
    assert main(["reading", str(tmp_path), f"--out={tmp_path / 'out'}", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("experiments.bench: ") and not (tmp_path / "out").exists()


def test_only_the_first_frames_are_read():
    read = (np.full((3, 1), number) for number in range(9))
    assert [len(batch) for batch in reading_worker.first_frames(7, read)] == [3, 3, 1] and not list(read)


def test_films_are_of_their_forms(monkeypatch, tmp_path, capsys):
    small = {name: form._replace(width=96, height=64) for name, form in reading_films.FORMS.items()}
    monkeypatch.setattr(reading_films, "FORMS", small)
    synthetic(["reading-films", str(tmp_path / "films"), "--seconds", "1"])
    assert "bench reading" in capsys.readouterr().out
    for name in small:
        with av.open(str(tmp_path / "films" / name)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
            assert (stream.width, stream.height, float(stream.average_rate)) == (96, 64, 30)
        assert len(frames) == 30 and np.abs(frames[0] - frames[-1]).mean() > 1
    assert len(list((tmp_path / "films").iterdir())) == len(small)
