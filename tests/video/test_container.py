import dataclasses

import numpy as np
import pytest
from clips import number_of, picture, write_clip

from vxl2_jax.video import decode, runs
from vxl2_jax.video.index import read_index
from vxl2_jax.video.reader import open_video
from vxl2_jax.video.runs import Losses

LONG_GOP = {"g": "30", "keyint_min": "30", "bf": "3", "sc_threshold": "0"}
CLIPS = {
    "x264-b-frames.mp4": {"codec": "libx264", **LONG_GOP},
    "x264-open-gop.mkv": {"codec": "libx264", **LONG_GOP, "x264-params": "open-gop=1:b-pyramid=normal"},
    "x264-one-gop.mp4": {"codec": "libx264", "g": "1000", "sc_threshold": "0"},
    "x264-intra-refresh.mp4": {"codec": "libx264", "g": "30", "x264-params": "intra-refresh=1"},
    "x264.ts": {"codec": "libx264", **LONG_GOP},
    "x265.mp4": {"codec": "libx265", "x265-params": "keyint=30:bframes=4:log-level=none"},
    "mpeg4.mp4": {"codec": "mpeg4", "g": "30", "bf": "2", "b": "800000"},
    "mpeg4-b.avi": {"codec": "mpeg4", "g": "30", "bf": "2", "b": "800000"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "30", "b": "800000"},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "15", "bf": "2", "b": "2000000"},
    "vp8.webm": {"codec": "libvpx", "g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "500000"},
    "flv-no-key-flags.swf": {"codec": "flv", "g": "30", "b": "800000"},
    "ffv1-10-bit.mkv": {"codec": "ffv1", "pix_fmt": "yuv422p10le"},
}


def read_frames(path, index, frames, **options):
    return decode.read_frames(path, index, frames, lambda rgb: rgb, **options)


@pytest.fixture(scope="module", params=CLIPS)
def clip(request, tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / request.param, 110, **CLIPS[request.param])


def test_the_index_counts_the_frames_that_decode(clip):
    index = read_index(clip)
    frames = list(read_frames(clip, index, np.arange(len(index.times)), skip=False))
    assert len(index.times) == len(frames) == 110
    assert [number_of(rgb) for rgb in frames] == list(range(110))
    np.testing.assert_allclose(index.times, np.arange(110) / 25, atol=2e-3)


@pytest.mark.parametrize(
    "frames_to_read", [[0, 109], [64, 65, 108], [29, 30, 31, 89, 91], [100], list(range(0, 110, 7))]
)
def test_skipping_gives_the_same_frames_as_decoding_everything(clip, frames_to_read):
    index = read_index(clip)
    all_decoded = list(read_frames(clip, index, np.array(frames_to_read), skip=False))
    assert [number_of(rgb) for rgb in all_decoded] == frames_to_read
    for threads in (1, 2):
        skipped = list(read_frames(clip, index, np.array(frames_to_read), threads=threads))
        np.testing.assert_array_equal(skipped, all_decoded)


def test_a_distant_frame_is_reached_without_decoding_all_before_it(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 200, **LONG_GOP)
    index = read_index(path)
    decoded, original = [], decode.decode
    for module in (decode, runs):
        monkeypatch.setattr(module, "decode", lambda s, p: decoded.append(p) or original(s, p))
    for threads in (1, 2):  # with two threads, a single run is read through
        decoded.clear()
        assert [number_of(f) for f in read_frames(path, index, np.array([185]), threads=threads)] == [185]
        assert len(decoded) <= 22


def test_rotated_video_is_upright(tmp_path):
    plain = open_video(write_clip(tmp_path / "a.mp4", 3), size=64)
    upright = next(plain.batches(1))[0]
    for degrees in (90, 180, -90):
        path = write_clip(tmp_path / f"{degrees}.mp4", 3, rotation=degrees)
        rotated = next(open_video(path, size=64).batches(1))[0]
        # The file asks for a rotation by `degrees` counter-clockwise.
        assert np.abs(rotated.astype(int) - np.rot90(upright, degrees // 90)).mean() < 8


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "suffix"),
    [("ffv1", "gray", (48, 64), "mkv"), ("ffv1", "bgra", (47, 61), "mkv"), ("ffv1", "yuv420p", (33, 51), "mkv"),
     ("libx264", "yuv444p", (49, 63), "mp4")],
)  # fmt: skip
def test_grey_alpha_and_odd_sizes_become_rgb(tmp_path, codec, pix_fmt, size, suffix):
    path = write_clip(tmp_path / f"a.{suffix}", 5, codec=codec, pix_fmt=pix_fmt, size=size)
    (rgb,) = read_frames(path, read_index(path), np.array([3]))
    assert rgb.shape == (*size, 3) and rgb.dtype == np.uint8
    expected = picture(3, *size).astype(int)
    if pix_fmt == "gray":
        expected = np.repeat(expected @ np.array([0.299, 0.587, 0.114]), 3).reshape(expected.shape)
    assert np.abs(rgb[::2, ::2] - expected[::2, ::2]).mean() < 12


def test_a_frame_lost_by_skipping_is_found_by_decoding_everything(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 90, **LONG_GOP)
    index = read_index(path)
    # A wrong index: decoding from these packets misses the frames to read.
    wrong = dataclasses.replace(index, key_frames=np.array([0, 50]), key_packets=np.array([0, 80]))
    for threads in (1, 2):
        losses = Losses()
        frames = read_frames(path, wrong, np.array([3, 55, 88]), threads=threads, losses=losses)
        assert [number_of(f) for f in frames] == [3, 55, 88] and losses == Losses()


def test_a_frame_that_cannot_be_decoded_is_replaced_by_the_one_before(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 60, codec="mpeg4", g="1")
    index = read_index(path)
    original, lost = decode.decode, set(index.packets[[20, 21, 58, 59]])
    for module in (decode, runs):
        monkeypatch.setattr(module, "decode", lambda s, p: [f for f in original(s, p) if f.pts not in lost])
    losses = Losses()
    frames = read_frames(path, index, np.array([5, 20, 22, 57, 58, 59]), losses=losses)
    assert [number_of(f) for f in frames] == [5, 19, 22, 57, 57, 57] and losses == Losses(replaced=3)
