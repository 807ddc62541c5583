"""Damaged, truncated and mislabelled files: a clear error, never a hang or a decoder's traceback."""

import itertools

import av
import numpy as np
import pytest
from clips import number_of, write_clip, write_sound
from PIL import Image

from vxl2_jax.errors import VideoError
from vxl2_jax.video import content_hash, open_video


def frame_numbers(source):
    frames = list(itertools.chain.from_iterable(source.batches(7)))
    assert len(frames) == len(source.seconds) == len(source.indices) >= 1
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi", "mp4"])
def test_a_truncated_file_gives_the_frames_before_the_cut(tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    whole = tmp_path / f"whole.{suffix}"
    with av.open(str(write_clip(tmp_path / f"a.{suffix}", 100, g="25", codec="libx264", bf="0"))) as source:
        with av.open(str(whole), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for place in range(len(data) * 6 // 10, len(data) * 6 // 10 + 300, 37):  # between packets and within
        cut.write_bytes(data[:place])
        source = open_video(cut, size=64, fps=25)
        assert 30 <= source.total_frames < 80
        numbers = frame_numbers(source)
        # A truncated packet may still look complete to the container: only the very last frame may be concealed.
        assert numbers[:-1] == list(range(source.total_frames - 1)), (place, source.damaged)
        assert frame_numbers(open_video(cut, size=64, fps=25)) == numbers
        if source.damaged:  # an older FFmpeg may repeat the frame before a truncated one
            assert numbers[-1] in (source.total_frames - 1, source.total_frames - 2), place


def test_a_tail_of_zeros_is_not_counted(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100, g="10", bf="0")
    with av.open(str(path)) as container:
        place = next(p.pos for i, p in enumerate(container.demux(video=0)) if i == 55)
        end = max(p.pos + p.size for p in av.open(str(path)).demux(video=0) if p.size)
    data = bytearray(path.read_bytes())
    data[place:end] = bytes(end - place)
    path.write_bytes(data)
    source = open_video(path, size=64, fps=25)
    assert source.damaged and 50 <= source.total_frames <= 56
    assert frame_numbers(source)[:50] == list(range(50))


def test_noise_in_the_middle_gives_the_same_frames_each_time(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100, g="10", bf="2")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    sources = [open_video(path, size=64, fps=25) for _ in range(2)]
    first, second = (np.concatenate(list(source.batches(16))) for source in sources)
    assert len(first) == len(sources[0].seconds) >= 90
    np.testing.assert_array_equal(first, second)


def test_a_variable_rate_is_sampled_by_time(tmp_path):
    times = [i * 0.5 for i in range(20)] + [10 + i * 0.04 for i in range(100)]
    source = open_video(write_clip(tmp_path / "a.mkv", 120, times=times, g="50", bf="2"), size=64, fps=2)
    assert source.variable_rate and source.total_frames == 120
    numbers = frame_numbers(source)
    assert numbers == source.indices.tolist()
    assert source.seconds.tolist() == [round(times[i], 1) for i in numbers]
    assert np.diff(source.seconds).max() < 1.1


def test_a_frame_on_screen_for_long_is_repeated(tmp_path):
    times = [0, 0.04, 0.08, 0.12, 8, 8.04, 8.08, 8.12]
    source = open_video(write_clip(tmp_path / "a.mkv", 8, times=times), size=64)
    assert frame_numbers(source) == source.indices.tolist()
    assert (source.indices == 3).sum() > 2


def test_names_with_colons_and_percents_are_files(tmp_path):
    for name in ("http:x.mp4", "a%03d.mp4", "-i.mp4", "ü 日本.mp4"):
        path = write_clip(tmp_path / "plain.mp4", 5).rename(tmp_path / name)
        assert open_video(path, size=32).total_frames == 5


def invalid_files(folder):
    """Name -> (file, a word that its error message must contain)."""
    make = {}

    def put(name, data, word):
        (folder / name).write_bytes(data)
        make[name] = (folder / name, word)

    clip = write_clip(folder / "clip.mp4", 20).read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "p.png")
    put("empty.mp4", b"", "empty")
    put("text.mp4", b"Once upon a time\n" * 50, "not a video")
    put("notes.txt", b"Once upon a time\n" * 50, "text")
    put("words.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n", "no video")
    put("list.m3u8", b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "video")
    write_clip(folder / "segment.ts", 20)
    put(
        "local.m3u8",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsegment.ts\n#EXT-X-ENDLIST\n",
        "a list of other files",
    )
    put("local.ffconcat", b"ffconcat version 1.0\nfile segment.ts\n", "a list of other files")
    put("garbage.mp4", np.random.default_rng(1).bytes(50_000), "video")
    put("garbage.avi", b"RIFF\x00\x10\x00\x00AVI " + np.random.default_rng(2).bytes(5000), "video")
    put("no-index.mp4", clip[: len(clip) // 3], "video")
    put("zeros.mp4", bytes(10_000), "video")
    put("half.png", (folder / "p.png").read_bytes()[:3000], "damaged")
    make["sound.wav"] = (write_sound(folder / "sound.wav", "pcm_s16le"), "no video")
    make["sound.mp4"] = (write_sound(folder / "sound.mp4", "aac"), "no video")
    make["missing.mp4"] = (folder / "missing.mp4", "no such file")
    (folder / "void").mkdir()
    (folder / "void" / "readme.txt").write_text("nothing")
    make["void"] = (folder / "void", "without images")
    (folder / "liars").mkdir()
    (folder / "liars" / "1.png").write_text("not an image")
    make["liars"] = (folder / "liars" / "1.png", "not an image")
    blank = bytearray(clip)
    start = blank.index(b"mdat") + 4
    stop = blank.rindex(b"moov") - 4
    blank[start:stop] = bytes(stop - start)
    put("blank.mp4", bytes(blank), "no frame")
    return make


def test_files_that_are_no_video_are_refused_in_one_line(tmp_path, capfd):
    for name, (path, word) in invalid_files(tmp_path).items():
        target = path.parent if name == "liars" else path
        with pytest.raises(VideoError, match=word) as caught:
            open_video(target, size=32)
        text = str(caught.value)
        assert "\n" not in text and str(path) in text and ";" in text, text
    assert capfd.readouterr() == ("", "")  # FFmpeg logs nothing


@pytest.mark.parametrize("bad", [{"fps": 0}, {"fps": -2}, {"max_frames": 0}, {"max_fps": -1}, {"size": 0}])
def test_invalid_options_are_refused(tmp_path, bad):
    with pytest.raises(VideoError, match=next(iter(bad))):
        open_video(write_clip(tmp_path / "a.mp4", 3), **{"size": 32, **bad})


def test_hashing_a_missing_file_is_refused(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        content_hash(tmp_path / "missing.mp4")


def test_damage_in_one_group_of_pictures_changes_no_other(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 120, g="12", keyint_min="12", sc_threshold="0", bf="2")
    whole = np.concatenate(list(open_video(path, size=64, fps=25).batches(40)))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for place, size in [*places[36:48], places[75]]:  # a whole group, and one picture of another
        data[place : place + size] = bytes(size) if size > 4 else data[place : place + size]
    path.write_bytes(data)
    found = []
    for threads in (1, 2, 5):
        source = open_video(path, size=64, fps=25, read_threads=threads)
        found.append(np.concatenate(list(source.batches(40))))
        assert "could not be read" in source.notes[0]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    sound = [*range(36), *range(48, 72), *range(84, 120)]
    np.testing.assert_array_equal(found[0][sound], whole[sound])
    assert [number_of(frame) for frame in found[0][36:48]] == [35] * 12  # as a player, which holds the picture
