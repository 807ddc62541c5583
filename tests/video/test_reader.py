import itertools
import os
import threading
import time

import av
import numpy as np
import pytest
from clips import number_of, picture, write_clip
from films import Pictures, even, film_bytes, write_film
from PIL import Image

from vxl2_jax.cli.ask import thumbnails
from vxl2_jax.errors import VideoError
from vxl2_jax.frames import open_source
from vxl2_jax.options import WatchOptions
from vxl2_jax.video import content_hash, decode, open_video, prefetch, reader, resize_frame
from vxl2_jax.video.hashing import BackgroundHash, fingerprint
from vxl2_jax.video.index import read_index


def test_all_batches_but_the_last_are_full_and_can_be_read_again(tmp_path):
    source = open_video(write_clip(tmp_path / "a.mp4", 110, g="20"), size=40, fps=5)
    assert (source.kind, source.native_fps, source.total_frames, source.variable_rate) == ("video", 25, 110, False)
    assert source.duration_s == pytest.approx(4.4)
    assert source.seconds.tolist() == [round(i / 25, 1) for i in range(0, 110, 5)]
    batches = list(source.batches(8))
    assert [b.shape for b in batches] == [(8, 40, 40, 3), (8, 40, 40, 3), (6, 40, 40, 3)]
    assert batches[0].dtype == np.uint8
    assert [number_of(f) for f in np.concatenate(batches)] == list(range(0, 110, 5))
    np.testing.assert_array_equal(np.concatenate(list(source.batches(5))), np.concatenate(batches))
    with pytest.raises(VideoError, match="frames_per_batch"):
        source.batches(0)


def test_the_limit_thins_a_long_video_and_densifies_a_short_one(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100, g="20")
    assert len(open_video(path, size=16, fps=25, max_frames=10).seconds) == 10
    assert len(open_video(path, size=16, max_frames=256).seconds) == 17  # step round(25 / 4)
    assert len(open_video(path, size=16, max_frames=256, multiple_of_4=True).seconds) == 16


def test_an_image_is_a_padded_one_frame_video(tmp_path):
    for suffix in ("png", "bmp", "webp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(picture(5)).save(path, **({"lossless": True} if suffix == "webp" else {}))
        source = open_video(path, size=64)
        ((frame,),) = source.batches(4)
        assert (source.kind, source.total_frames, source.seconds.tolist()) == ("image", 1, [0.0])
        assert (frame[:8] == 127).all() and (frame[-8:] == 127).all()
        np.testing.assert_array_equal(frame[8:-8], picture(5))


def test_images_of_every_format_are_upright_and_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
    Image.fromarray(picture(3)).save(tmp_path / "rotated.jpg", exif=exif, quality=95)
    ((frame,),) = open_video(tmp_path / "rotated.jpg", size=64).batches(1)
    assert np.abs(frame[:, 8:-8].astype(int) - np.rot90(picture(3), -1)).mean() < 8
    assert (frame[:, :7] == 127).all()

    grey = np.full((8, 8), 40_000, np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.fromarray(np.full((8, 8, 4), 9, np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(picture(1)).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.fromarray(picture(1023))]
    )
    values = {name: next(open_video(tmp_path / name, size=8).batches(1)) for name in ("deep.png", "alpha.png")}
    assert (values["deep.png"] == 40_000 // 256).all() and (values["alpha.png"] == 9).all()
    ((first,),) = open_video(tmp_path / "moving.gif", size=64).batches(1)
    assert number_of(first[8:-8]) == 1


def test_a_folder_is_a_video_at_the_given_rate_in_numeric_order(tmp_path):
    for number in range(12):
        Image.fromarray(picture(number)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    source = open_video(tmp_path, size=64, fps=2)
    frames = np.concatenate(list(source.batches(5)))
    assert (source.kind, source.native_fps, source.duration_s) == ("folder", 2, 6)
    assert source.seconds.tolist() == [i / 2 for i in range(12)]
    assert [number_of(f) for f in frames] == list(range(12))
    np.testing.assert_array_equal(frames[10], resize_frame(picture(10), 64))
    assert len(open_video(tmp_path, size=8, fps=2, max_frames=4).seconds) == 4


def test_key_frames_stand_for_the_frames_after_them_and_say_when_they_were(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100, g="30", keyint_min="30", sc_threshold="0", bf="2")
    source = open_video(path, size=64, fps=5, frames_from="keyframes")
    assert source.indices.tolist() == [i // 30 * 30 for i in range(0, 100, 5)]
    assert source.seconds.tolist() == [round(i / 25, 1) for i in source.indices]
    assert [number_of(frame) for frame in np.concatenate(list(source.batches(6)))] == source.indices.tolist()
    assert source.distinct_frames == 4 and source.notes == ()
    with pytest.raises(VideoError, match="frames_from"):
        open_video(path, size=64, frames_from="some")
    for other in (write_clip(tmp_path / "a.swf", 30, codec="flv"), write_clip(tmp_path / "a.avi", 30, bf="2")):
        assert "key frames" in open_video(other, size=64, frames_from="keyframes").notes[0]


def test_without_known_key_frames_all_frames_are_chosen_from_with_a_note(tmp_path):
    raw = write_film(tmp_path / "raw.h264", Pictures(even(50, 25), rate=25, options={"g": "10", "bf": "0"}))
    hidden = {"g": "30", "bf": "0", "sc_threshold": "0"}  # the edit list hides the only key frame
    cut = write_film(tmp_path / "cut.mp4", Pictures(even(30, 10, start=-0.6), options=hidden))
    for path in (raw, cut):
        source, plain = open_video(path, size=64, frames_from="keyframes"), open_video(path, size=64)
        np.testing.assert_array_equal(source.indices, plain.indices)
        assert "key frames" in source.notes[0] and plain.notes == ()


def test_a_film_whose_headers_change_is_decoded_from_its_first_packet_on(tmp_path):
    plain = {"g": "10", "bf": "0"}
    parts = [
        film_bytes(Pictures(even(40, 10), options=plain), folder=tmp_path, suffix="flv"),
        film_bytes(
            Pictures(
                even(40, 10, start=4), range(100, 140), options=plain | {"coder": "vlc", "x264-params": "8x8dct=0"}
            ),
            folder=tmp_path,
            suffix="flv",
        )[13:],  # without the header of the file
    ]
    path = tmp_path / "joined.flv"
    path.write_bytes(b"".join(parts))
    assert read_index(path).changes
    for threads in (1, 2):
        source = open_video(path, size=64, read_threads=threads)
        numbers = [number_of(frame) for frame in np.concatenate(list(source.batches(5)))]
        assert numbers == [0, 10, 20, 30, 100, 110, 120, 130] and source.notes == ()


def test_a_plot_shows_the_stream_that_was_watched(tmp_path):
    film, other = Pictures(even(30, 10)), Pictures(even(30, 10), range(500, 530))
    path = write_film(tmp_path / "a.mkv", film, other)
    frames, seconds = thumbnails(str(path), 3, WatchOptions(stream=1))
    assert [number_of(frame) for frame in frames] == [500, 510, 520] and seconds.tolist() == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_is_replaced_while_it_is_read_is_an_error_of_one_line(tmp_path, threads):
    options = {"g": "10", "bf": "2"}
    path = write_film(tmp_path / "a.mkv", Pictures(even(100, 10), options=options))
    source = open_video(path, size=64, read_threads=threads)
    write_film(path, Pictures(even(25, 10), range(300, 325), options=options))
    with pytest.raises(VideoError, match="another copy"):
        list(source.batches(4))
    path.unlink()
    with pytest.raises(VideoError, match="no such file"):
        list(source.batches(4))


def test_images_have_no_streams(tmp_path):
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(VideoError, match="stream"):
            open_video(path, size=64, stream=0)


def test_without_a_device_frames_are_decoded_in_software_with_a_note(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 60, g="10")
    plain, source = open_video(path, size=64, fps=5), open_video(path, size=64, fps=5, decoder="hardware")
    for devices in ([], ["qsv"]):
        monkeypatch.setattr(decode, "hwdevices_available", lambda devices=devices: devices)
        np.testing.assert_array_equal(np.concatenate(list(source.batches(9))), np.concatenate(list(plain.batches(9))))
        assert len(source.notes) == 1 and "software" in source.notes[0]
    # A device that stops in the middle.
    monkeypatch.setattr(decode, "_read_in_hardware", lambda *_: (frame for frame in next(plain.batches(4))))
    np.testing.assert_array_equal(np.concatenate(list(source.batches(9))), np.concatenate(list(plain.batches(9))))
    assert "4 of 12 frames" in source.notes[0] and plain.notes == ()


def test_a_stream_can_be_chosen(tmp_path):
    small, large = (write_clip(tmp_path / f"{n}.mp4", 25, size=(n, 2 * n)) for n in (32, 48))
    with av.open(str(tmp_path / "a.mkv"), "w") as target, av.open(str(small)) as first, av.open(str(large)) as second:
        sources = [
            (container, target.add_stream_from_template(container.streams.video[0])) for container in (first, second)
        ]
        for (container, stream), count in zip(sources, (20, 25), strict=True):
            for packet in [packet for packet in container.demux(video=0) if packet.size][:count]:
                packet.stream = stream
                target.mux(packet)
    assert [open_video(tmp_path / "a.mkv", size=32, stream=n).total_frames for n in (None, 0, 1)] == [25, 20, 25]
    with pytest.raises(VideoError, match=r"0 \(64 × 32\), 1 \(96 × 48\)"):
        open_video(tmp_path / "a.mkv", size=32, stream=2)


def test_what_could_not_be_read_is_noted_once_it_is_known(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100, g="10", bf="0")
    source = open_video(path, size=32, fps=25)
    assert source.notes == ()
    with av.open(str(path)) as container:
        place, size = next((p.pos, p.size) for i, p in enumerate(container.demux(video=0)) if i == 51)
    data = bytearray(path.read_bytes())
    data[place : place + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    for _ in range(2):
        assert sum(map(len, source.batches(50))) == 100
        assert 1 <= len(source.notes) <= 2, source.notes


def test_animations_are_films(tmp_path):
    pictures = [Image.fromarray(picture(number)) for number in range(6)]
    for suffix, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True})):
        path = tmp_path / f"a.{suffix}"
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=[500, 500, 500, 500, 2000, 500], **options
        )
        source = open_video(path, size=64, fps=2)
        assert (source.kind, source.total_frames, source.duration_s) == ("video", 6, 4.5)
        assert source.indices.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 5]
        assert [number_of(frame) for frame in np.concatenate(list(source.batches(4)))] == source.indices.tolist()


def test_the_hash_is_computed_in_the_background(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 3)
    assert BackgroundHash(path)() == content_hash(path)
    wait = BackgroundHash(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="no such file"):
        wait()


def test_a_hash_that_is_not_wanted_any_more_ends(tmp_path):
    (tmp_path / "long").touch()
    os.truncate(tmp_path / "long", 2**40)  # without occupying the disk; hashing it would take minutes
    with pytest.raises(VideoError):
        open_source(tmp_path / "long", 64, {})
    assert not any(thread.name == "vxl2-hash" for thread in threading.enumerate())


def test_a_file_that_changes_while_it_is_watched_is_reported(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 30)
    source = open_source(path, 64, {})
    assert source.notes() == ()
    os.utime(path, (1, 1))
    assert "changed" in source.notes()[0]
    path.unlink()
    assert source.notes() == () and len(source.hash()) == 64


def test_a_fingerprint_belongs_to_a_file_at_a_time(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 3)
    before = fingerprint(path)
    assert fingerprint(path) == before
    os.utime(path, (1, 1))
    assert fingerprint(path) != before


def test_the_hash_depends_on_content_not_name(tmp_path):
    first = write_clip(tmp_path / "a.mp4", 3)
    digest = content_hash(first)
    assert content_hash(first.rename(tmp_path / "b.mp4")) == digest and len(digest) == 64
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.fromarray(picture(1)).save(folder / "1.png")
    before = content_hash(folder)
    (folder / "1.png").rename(folder / "2.png")
    renamed = content_hash(folder)
    Image.fromarray(picture(2)).save(folder / "2.png")
    assert len({before, renamed, content_hash(folder)}) == 3


def threads():
    return [t for t in threading.enumerate() if t.name == "vxl2-prefetch"]


def test_prefetching_keeps_order_and_runs_ahead():
    made = []

    def numbers():
        for i in range(20):
            made.append(i)
            yield i

    ahead = prefetch(numbers(), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5  # one consumed, three queued, one waiting to be queued
    assert list(ahead) == list(range(1, 20))
    assert not threads()


def test_prefetching_raises_what_the_iterator_raised_after_its_items():
    def failing():
        yield 1
        raise VideoError("gone; fetch it again")

    ahead = prefetch(failing())
    assert next(ahead) == 1
    with pytest.raises(VideoError, match="gone"):
        next(ahead)
    assert not threads()


def test_stopping_early_ends_the_thread_and_closes_the_source():
    closed = []

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.append(threading.current_thread().name)

    for _ in range(3):
        ahead = prefetch(endless(), depth=1)
        assert next(ahead) == 0
        ahead.close()
    assert closed == ["vxl2-prefetch"] * 3 and not threads()


def test_prefetched_frames_are_the_same_frames(tmp_path):
    source = open_video(write_clip(tmp_path / "a.mp4", 60), size=32, fps=5)
    for plain, ahead in zip(source.batches(3), prefetch(source.batches(3)), strict=True):
        np.testing.assert_array_equal(plain, ahead)


def test_a_length_that_no_video_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_SECONDS", 1)
    assert open_video(write_clip(tmp_path / "a.mp4", 25), size=8).total_frames == 25
    with pytest.raises(VideoError, match="lasts 2 s"):
        open_video(write_clip(tmp_path / "b.mp4", 50), size=8)
