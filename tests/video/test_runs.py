"""Frames that are chosen, whatever is skipped and however many threads read, are those of decoding a film through."""

import inspect
import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from clips import write_clip

from vxl2_jax.video import decode, open_video, resize_frame, runs

READ_THREADS = (1, 2, 5) if "read_threads" in inspect.signature(open_video).parameters else (None,)
FRAMES, RATE, SIZE = 130, 25, 40
STEPS = (1, 7, 50)
"""Every so many frames are read: of one group of pictures, of most, of some."""
ONE = 1000  # a group of pictures that is longer than the film
FOOTAGE = Path(__file__).parents[2] / "experiments" / "synthetic" / "footage"


def h264(group: int, b_frames: int, is_open: bool, **more: str) -> dict:
    params = f"open-gop={int(is_open)}:b-pyramid=normal"
    options = {"g": str(group), "keyint_min": str(group), "bf": str(b_frames), "sc_threshold": "0"}
    return {"codec": "libx264", **options, "x264-params": params, **more}


def hevc(group: int, b_frames: int, is_open: bool) -> dict:
    params = f"keyint={group}:min-keyint={group}:bframes={b_frames}:open-gop={int(is_open)}:scenecut=0"
    return {"codec": "libx265", "x265-params": f"{params}:log-level=none:pools=1"}


def mpeg2(group: int, b_frames: int, is_open: bool) -> dict:
    flags = {} if is_open else {"flags": "+cgop"}
    return {
        "codec": "mpeg2video",
        "g": str(group),
        "bf": str(b_frames),
        "b": "2000000",
        "sc_threshold": "1000000000",
        **flags,
    }


def mpeg4(group: int, b_frames: int) -> dict:
    return {"codec": "mpeg4", "g": str(group), "bf": str(b_frames), "b": "800000"}


def vpx(codec: str, group: int, hidden: int) -> dict:
    """hidden: whether frames that are not shown are stored."""
    return {
        "codec": codec,
        "g": str(group),
        "auto-alt-ref": str(hidden),
        "lag-in-frames": str(16 * hidden),
        "cpu-used": "8",
    }


def av1(group: int) -> dict:
    return {"codec": "libsvtav1", "g": str(group), "preset": "12", "size": (64, 64), "svtav1-params": "lp=1"}


def films() -> dict[str, tuple[str, dict]]:
    """Name → (suffix of the container, keywords of `write_clip`)."""
    found: dict[str, tuple[str, dict]] = {}
    kinds = [(0, False), (3, False), (3, True)]
    containers = {
        "h264": (h264, itertools.cycle(["mp4", "mkv", "ts", "mov", "flv"])),
        "hevc": (hevc, itertools.cycle(["mkv", "mp4", "ts"])),
        "mpeg2": (mpeg2, itertools.cycle(["ts", "mpg", "mkv"])),
    }
    for codec, (options, suffixes) in containers.items():
        for group, (b_frames, is_open) in itertools.product((1, 12, 60, ONE), kinds):
            if (group == 1 and b_frames) or (codec == "mpeg2" and group == ONE):  # mpeg2 has groups of at most 600
                continue
            name = f"{codec}-{group}-{b_frames}b-{'open' if is_open else 'closed'}"
            found[name] = next(suffixes), options(group, b_frames, is_open)
    for group, b_frames, suffix in ((1, 0, "avi"), (12, 2, "mp4"), (60, 0, "avi"), (60, 2, "avi"), (ONE, 2, "mkv")):
        found[f"mpeg4-{group}-{b_frames}b"] = suffix, mpeg4(group, b_frames)
    for codec, suffixes in {"libvpx": ("webm", "mkv"), "libvpx-vp9": ("webm", "mp4")}.items():
        for (group, suffix), hidden in itertools.product(zip((12, 60), suffixes, strict=True), (0, 1)):
            found[f"{codec}-{group}-{hidden}"] = suffix, vpx(codec, group, hidden)
        found[f"{codec}-{ONE}"] = "webm", vpx(codec, ONE, 1)
    for group, suffix in ((1, "mp4"), (12, "mkv"), (60, "mp4"), (ONE, "webm")):
        found[f"av1-{group}"] = suffix, av1(group)
    found["raw-h264"] = "h264", h264(12, 3, True)
    found["h264-intra-refresh"] = "mp4", {"codec": "libx264", "g": "30", "x264-params": "intra-refresh=1"}
    found["h264-slices"] = "mp4", h264(12, 2, False, slices="4")
    found["h264-ten-bits"] = "mkv", h264(60, 3, True) | {"pix_fmt": "yuv420p10le"}
    found["h264-rotated"] = "mp4", h264(12, 3, True) | {"rotation": 90}
    found["h264-interlaced"] = "ts", h264(12, 2, True) | {"x264-params": "interlaced=1:open-gop=1"}
    return found


FILMS = films()
FAST = {"h264-60-3b-open", "h264-12-3b-closed", f"h264-{ONE}-3b-closed", "hevc-12-3b-open", "libvpx-12-1", "libvpx-vp9-60-1",
        "mpeg2-12-3b-open", "mpeg4-60-2b"}  # fmt: skip
assert set(FILMS) >= FAST and len(FILMS) >= 30


def decode_through(path: Path) -> np.ndarray:
    """All frames, decoded one after the other by one thread: uint8 [N, SIZE, SIZE, 3]."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        return np.stack(
            [
                resize_frame(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4), SIZE)
                for frame in container.decode(stream)
            ]
        )


def check(path: Path, threads: int | None, expected: np.ndarray) -> None:
    more = {} if threads is None else {"read_threads": threads}
    rate = open_video(path, size=SIZE).native_fps
    for step in STEPS:
        source = open_video(path, size=SIZE, fps=rate / step, **more)
        assert source.total_frames == len(expected)
        np.testing.assert_array_equal(source.indices, np.arange(0, len(expected), step))
        np.testing.assert_array_equal(np.concatenate(list(source.batches(4))), expected[source.indices])
        first = len(source.indices) // 3
        np.testing.assert_array_equal(np.concatenate(list(source.batches(3, first))), expected[source.indices[first:]])


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """(path, all frames) of a film, once."""
    found: dict[str, tuple[Path, np.ndarray]] = {}

    def decode(name: str) -> tuple[Path, np.ndarray]:
        if name not in found:
            suffix, options = FILMS[name]
            path = write_clip(tmp_path_factory.mktemp("run") / f"film.{suffix}", FRAMES, rate=RATE, **options)
            found[name] = path, decode_through(path)
        return found[name]

    return decode


@pytest.mark.parametrize("threads", READ_THREADS)
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FILMS]
)
def test_chosen_frames_are_those_of_decoding_through(decoded, name, threads):
    path, expected = decoded(name)
    assert len(expected) == FRAMES
    check(path, threads, expected)


@pytest.mark.slow
@pytest.mark.parametrize("threads", READ_THREADS)
@pytest.mark.parametrize("path", sorted(FOOTAGE.glob("t*/*.mp4")), ids=lambda path: path.stem)
def test_chosen_frames_of_real_footage_are_those_of_decoding_through(path, threads):
    check(path, threads, decode_through(path))


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 1), ("MAX_FRAMES", 8)])
def test_frames_are_the_same_however_little_may_be_held(decoded, monkeypatch, limit, value):
    path, expected = decoded("h264-12-3b-closed")
    monkeypatch.setattr(runs, limit, value)
    monkeypatch.setattr(decode, "suits", lambda *_: True)
    check(path, 2, expected)
