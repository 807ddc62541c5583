"""Films of odd timestamps, streams, containers and rates: what is on screen at each instant is known from their making.

A case writes a film and states which pictures are to be read, and whether something is missing that must be reported.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from clips import number_of, picture, write_sound
from films import (
    TS_CLOCK,
    TS_WRAP,
    Lines,
    Pictures,
    Sound,
    Stream,
    boxes,
    even,
    film_bytes,
    restamp,
    two_programs,
    write_film,
)
from PIL import Image

from vxl2_jax.errors import VideoError
from vxl2_jax.video import open_video, sample_indices

TEN = [0, 10, 20]
"""What a film of 30 pictures at 10 per second shows at 0, 1 and 2 s."""
DAY = 26 * 3600
PLAIN = {"g": "10", "bf": "0", "sc_threshold": "0"}
ORDERED = PLAIN | {"bf": "2"}  # with B-frames: stored in another order than shown


class Case(NamedTuple):
    """make: (folder) → the film; shown: pictures at the instants 0, 1 / fps, 2 / fps ... or at `seconds`.

    notes: whether something is reported as missing; None: either. turn: quarter turns of the display. limit: of frames.
    """

    make: Callable[[Path], Path]
    shown: Sequence[int]
    fps: float
    seconds: Sequence[float] | None
    notes: bool | None
    turn: int
    limit: int | None


CASES: dict[str, Case] = {}
REFUSED: dict[str, Callable[[Path], Path]] = {}


def add(name: str, make: Callable[[Path], Path], shown=TEN, *, fps=1.0, seconds=None, notes=False, turn=0, limit=None):
    """Add a case; the arguments are its fields."""
    assert name not in CASES, name
    CASES[name] = Case(make, shown, fps, seconds, notes, turn, limit)


def case(shown, **about) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Add the decorated function as a case."""

    def decorate(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        add(make.__name__, make, shown, **about)
        return make

    return decorate


def film(name: str, suffix: str, *streams: Stream, shown=TEN, written: dict | None = None, **about) -> None:
    """Add a case that `write_film` alone makes, with the keywords `written`."""

    def make(folder: Path) -> Path:
        return write_film(folder / f"film.{suffix}", *streams, **(written or {}))

    add(name, make, shown, **about)


def restamped(name: str, change: Callable[[int, int], int | None], shown=TEN, *, stream: dict | None = None, **about):
    """Add a case of MPEG-TS with changed timestamps, of the pictures `ten(**stream)`."""

    def make(folder: Path) -> Path:
        return put(folder, "ts", restamp(ts(folder, **(stream or {})), change))

    add(name, make, shown, **about)


def refused(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    REFUSED[make.__name__] = make
    return make


def put(folder: Path, suffix: str, data: bytes) -> Path:
    path = folder / f"film.{suffix}"
    path.write_bytes(data)
    return path


def ten(count: int = 30, start: float = 0, first: int = 0, options: dict = PLAIN, **about) -> Pictures:
    """Pictures `first`, `first` + 1 ... at ten per second."""
    return Pictures(even(count, 10, start=start), range(first, first + count), options=options, **about)


def ts(folder: Path, **about) -> bytes:
    """MPEG-TS of `ten`."""
    return film_bytes(ten(**about), folder=folder)


def with_outlier(place: int, late_s: float) -> list[int]:
    times = even(30, 10)
    times[place] += round(late_s * 1000)
    return times


# Timestamps.

for where, place in {"first": 0, "middle": 13, "last": 29}.items():
    for suffix in ("mkv", "flv"):
        film(f"outlier_{where}_{suffix}", suffix, Pictures(with_outlier(place, DAY), options=PLAIN), notes=None)
    restamped(f"outlier_{where}_ts", lambda n, t, at=place: t + 20 * 3600 * TS_CLOCK * (n == at), notes=None)
film("outlier_middle_mp4", "mp4", Pictures(with_outlier(13, 3 * 3600), options=PLAIN), notes=None)
film("outlier_last_mp4", "mp4", Pictures(with_outlier(29, 3 * 3600), options=PLAIN), notes=None)
film("outlier_last_day_mp4", "mp4", Pictures(with_outlier(29, DAY), options=PLAIN), notes=None)
film(
    "outlier_among_b_frames", "mkv", Pictures(with_outlier(13, DAY), options=ORDERED), notes=None
)  # not at an instant that is read
LIMITED = sample_indices(30, 10.0, fps=0.5, max_frames=10)
film(
    "outlier_with_a_limit", "mkv", Pictures(with_outlier(13, DAY), options=PLAIN), shown=LIMITED, fps=0.5,
    seconds=LIMITED / 10, limit=10, notes=None,
)  # fmt: skip


# One stamp of an hour before the others.
restamped("outlier_early_ts", lambda n, t: t + (1 if n == 13 else 2) * 3600 * TS_CLOCK, notes=None)
restamped("every_second_stamp_missing", lambda n, t: None if n % 2 else t)
restamped("all_stamps_but_the_first_missing", lambda n, t: None if n else t, notes=None)


def joined(folder: Path, shift_s: float, options: dict) -> Path:
    """Two recordings of 2 s, of which the second begins `shift_s` after the first."""
    shift = round(shift_s * TS_CLOCK)
    base = 100 * TS_CLOCK
    first, second = (ts(folder, count=20, first=first, options=options) for first in (0, 100))
    return put(folder, "ts", restamp(first, lambda n, t: t + base) + restamp(second, lambda n, t: t + base + shift))


for name, shift_s in {"back_30_s": -30, "same_clock": 0, "an_hour_later": 3600, "back_1_s": -1}.items():
    for kind, options in {"": PLAIN, "_b_frames": ORDERED}.items():
        make = functools.partial(joined, shift_s=shift_s, options=options)
        add(f"joined_{name}{kind}", make, [0, 10, 100, 110], notes=True)


@case([0, 10, 100, 110, 200, 210], notes=True)
def three_joined(folder: Path) -> Path:
    return put(folder, "ts", b"".join(ts(folder, count=20, first=first) for first in (0, 100, 200)))


@case([*range(0, 20, 5), *range(100, 120, 5)], fps=5, notes=True)
def joined_program_streams(folder: Path) -> Path:
    parts = (
        film_bytes(Pictures(even(20, 25), range(first, first + 20), rate=25, codec="mpeg2video"), folder=folder, suffix="mpg")
        for first in (0, 100)
    )  # fmt: skip
    return put(folder, "mpg", b"".join(parts))


restamped("clock_wraps_after_one_second", lambda n, t: t + TS_WRAP - TS_CLOCK)
restamped("clock_wraps_after_one_second_b_frames", lambda n, t: t + TS_WRAP - TS_CLOCK, stream={"options": ORDERED})


@case(range(0, 100, 10), fps=0.1)
def clock_wraps_after_80_seconds(folder: Path) -> Path:
    data = film_bytes(Pictures(even(100, 1), rate=1, options=PLAIN), folder=folder)
    return put(folder, "ts", restamp(data, lambda n, t: t + TS_WRAP - 80 * TS_CLOCK))


restamped(
    "gap_of_5_s_in_ts", lambda n, t: t + 5 * TS_CLOCK * (n >= 10), [0, 9, 9, 9, 9, 9, 10], stream={"count": 20}, notes=None
)  # fmt: skip
GAP = [*even(10, 10), *even(10, 10, start=20.5)]
for suffix in ("mp4", "mkv", "mov", "nut"):
    film(f"gap_of_20_s_in_{suffix}", suffix, Pictures(GAP, options=PLAIN), shown=[0, *[9] * 20, 15], notes=None)
film(
    "gap_of_an_hour", "mkv", Pictures([*even(10, 10), *even(10, 10, start=3600.5)], options=PLAIN),
    shown=[0, *[9] * 36], fps=0.01, notes=None,
)  # fmt: skip
film(
    "gap_in_avi",
    "avi",
    Pictures([*range(10), *range(30, 40)], ticks=10, options=PLAIN),
    shown=[0, 9, 9, 10],
    notes=None,
)
film("negative_start_mkv", "mkv", ten(start=-0.6), written={"options": {"avoid_negative_ts": "disabled"}})
film("edit_list_cuts_the_beginning", "mp4", ten(start=-0.6), shown=[6, 16, 26])
film("edit_list_cuts_the_beginning_b_frames", "mp4", ten(start=-0.6, options=ORDERED), shown=[6, 16, 26])
film("late_start_mp4", "mp4", ten(start=3))
film("late_start_mkv", "mkv", ten(start=3))
film("late_start_ts", "ts", ten(start=3, options=ORDERED))
film(
    "pairs_of_equal_times", "mkv", Pictures([200 * (i // 2) for i in range(18)], options=PLAIN), shown=[1, 11],
    notes=None,
)  # fmt: skip
film("all_times_equal", "mkv", Pictures([0] * 30, options=PLAIN), notes=None)
film("shaking_clock", "mkv", Pictures([t - 20 * (i % 3) for i, t in enumerate(even(30, 10))], options=PLAIN))

# Clocks and rates: of a constant rate every round(rate / fps)-th picture is read.

NTSC = Fraction(1001, 1000)
RATES = {"film": 24 / NTSC, "pal": Fraction(25), "ntsc": 30 / NTSC, "double": 60 / NTSC, "fast": Fraction(120)}
for name, rate in RATES.items():
    for suffix, ticks in {"mkv": 1000, "ts": TS_CLOCK, "mp4": 1_000_000}.items():
        chosen = range(0, round(float(rate)), round(float(rate) / 4))
        film(
            f"rate_{name}_{suffix}", suffix,
            Pictures(even(round(float(rate)), rate, ticks), ticks=ticks, rate=rate, options=ORDERED), shown=chosen, fps=4,
            seconds=[float(number / rate) for number in chosen],
        )  # fmt: skip
film("one_tick_per_picture", "mp4", Pictures(even(30, 10, 10), ticks=10, options=ORDERED))
film("one_per_second", "mp4", Pictures(even(5, 1), rate=1), shown=range(5))
film("one_every_five_seconds", "mp4", Pictures(even(3, 0.2), rate=Fraction(1, 5)), shown=[0] * 5 + [1] * 5 + [2] * 5)
film("slides_of_two_seconds", "mp4", Pictures(even(4, 0.5), rate=Fraction(1, 2)), shown=[0, 0, 1, 1, 2, 2, 3, 3])
film("slides_of_two_seconds_mkv", "mkv", Pictures(even(4, 0.5), rate=Fraction(1, 2)), shown=[0, 0, 1, 1, 2, 2, 3, 3])
film("asked_for_more_than_there_is", "mp4", Pictures(even(3, 1), rate=1), fps=4, shown=[0] * 4 + [1] * 4 + [2] * 4)
film(
    "nearly_as_slow_as_asked",
    "mp4",
    Pictures(even(4, 3), rate=3),
    fps=4,
    shown=range(4),
    seconds=[i / 3 for i in range(4)],
)
UNEVEN = [0, 100, 900, 1600, 1700, 3100, 3200, 4050]
for suffix in ("mp4", "mkv"):
    film(f"uneven_{suffix}", suffix, Pictures(UNEVEN, options=ORDERED), shown=[0, 2, 4, 4, 6], notes=None)
film("uneven_ts", "ts", Pictures(UNEVEN, options=PLAIN), shown=[0, 2, 4, 4, 6], notes=None)
HELD = [*even(10, 5), *even(9, 5, start=600)]
for suffix in ("mp4", "mkv"):
    film(f"held_{suffix}", suffix, Pictures(HELD, rate=5), shown=[0, 5, *[9] * 598, 10, 15], notes=None)
    film(f"held_asked_rarely_{suffix}", suffix, Pictures(HELD, rate=5), fps=0.01, shown=[0, *[9] * 5, 10], notes=None)
film("a_single_picture", "mp4", Pictures([0], [77]), shown=[77])

# Streams.

SMALL = Pictures(even(5, 10), range(500, 505), size=(16, 16))
STILL = Pictures([0], [700], codec="mjpeg", pix_fmt="yuvj420p", size=(96, 128))
for suffix in ("mkv", "mp4", "mov", "ts"):
    film(f"preview_before_the_film_{suffix}", suffix, SMALL, ten())
film("equally_long_preview_before_the_film", "mkv", Pictures(even(30, 10), range(500, 530), size=(16, 16)), ten())
film("large_but_short_trailer_before_the_film", "mkv", Pictures(even(3, 10), [500] * 3, size=(96, 128)), ten())
film("one_jpeg_before_the_film", "mkv", STILL, ten())
film("one_jpeg_before_the_film_mp4", "mp4", STILL, ten())
film("cover_beside_the_film", "mp4", Pictures([0], [700], codec="mjpeg", pix_fmt="yuvj420p", cover=True), ten())
film("sound_beside", "mp4", ten(), Sound(0, 3))
film("sound_first_and_longer", "mp4", Sound(0, 8), ten())
film("sound_begins_earlier", "mkv", Sound(0, 5), ten(start=2))
film("sound_and_subtitles_mkv", "mkv", Sound(0, 3), Lines([0.5, 1.5]), ten(options=ORDERED))
film("sound_and_subtitles_mp4", "mp4", Sound(0, 3), Lines([0.5, 1.5], "mov_text"), ten(options=ORDERED))
film("subtitles_begin_earlier", "mkv", Lines([0, 1, 3]), ten(start=2))
film("data_beside", "ts", Lines([0.5, 1.5], "data"), ten(), Sound(0, 3, "mp2"))


@case(TEN)
def second_of_two_programs(folder: Path) -> Path:
    """A film, after a program with a shorter one."""
    ids = {"mpegts_service_id": "2", "mpegts_pmt_start_pid": "0x1100", "mpegts_start_pid": "0x200"}
    first = film_bytes(ten(10, first=500), folder=folder, options=ids)
    return put(folder, "ts", two_programs(first, ts(folder)))


@case(TEN)
def attached_picture(folder: Path) -> Path:
    Image.fromarray(picture(700)).save(folder / "cover.jpg")
    with av.open(str(folder / "film.mkv"), "w") as container:
        container.add_attachment("cover.jpg", "image/jpeg", (folder / "cover.jpg").read_bytes())
        for packet in ten().encode(container)():
            container.mux(packet)
    return folder / "film.mkv"


# Containers.

MOVING = {"mp4": {}, "mov": {}, "mkv": {}, "flv": {}, "nut": {}, "ts": {}, "m2ts": {"mpegts_m2ts_mode": "1"}}
MOVING |= {"3gp": {}, "f4v": {}, "ismv": {}}
for suffix, options in MOVING.items():
    film(f"{suffix}_b_frames", suffix, ten(options=ORDERED), written={"options": options})
film("mp4_faststart", "mp4", ten(options=ORDERED), written={"options": {"movflags": "faststart"}})
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
film("mp4_fragments", "mp4", ten(options=ORDERED), written={"options": FRAGMENTS})
film("mp4_fragments_piped", "mp4", ten(options=ORDERED), written={"options": FRAGMENTS, "piped": True})
film("mkv_live", "mkv", ten(options=ORDERED), written={"options": {"live": "1"}})
film("mkv_without_cues_and_duration", "mkv", ten(options=ORDERED), written={"piped": True})
film("webm_vp8", "webm", ten(codec="libvpx", options={"g": "10"}))
film("webm_vp8_hidden_frames", "webm", ten(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}))
film("webm_vp9", "webm", ten(codec="libvpx-vp9", options={"g": "10", "cpu-used": "8"}))
film("ivf_vp9", "ivf", ten(codec="libvpx-vp9", options={"g": "10", "cpu-used": "8"}))
film("wmv", "wmv", ten(codec="wmv2", options={}))
film("mp4_mpeg4", "mp4", ten(codec="mpeg4", options={"g": "10", "bf": "2"}))
FRAMES = even(30, 10, 10)
film("avi", "avi", Pictures(FRAMES, ticks=10, options=ORDERED))
film("avi_mpeg4", "avi", Pictures(FRAMES, ticks=10, codec="mpeg4", options={"g": "10", "bf": "2"}))
film("y4m", "y4m", Pictures(FRAMES, ticks=10, codec="wrapped_avframe", options={}))
for suffix, codec in {"mpg": "mpeg2video", "vob": "mpeg2video", "mpeg": "mpeg1video"}.items():
    pictures = Pictures(even(50, 25), rate=25, codec=codec, options={"g": "12", "bf": "2"})
    film(f"program_stream_{suffix}", suffix, pictures, shown=range(0, 50, 5), fps=5)
# Without timestamps the rate is 25.
X265 = {"x265-params": "log-level=none:keyint=10"}
RAW = {"h264": ("libx264", "yuv420p", PLAIN), "hevc": ("libx265", "yuv420p", X265), "mjpeg": ("mjpeg", "yuvj420p", {})}
for suffix, (codec, pix_fmt, options) in RAW.items():
    pictures = Pictures(even(50, 25), rate=25, codec=codec, pix_fmt=pix_fmt, options=options)
    film(f"raw_{suffix}", suffix, pictures, shown=range(0, 50, 5), fps=5)
film("raw_h264_b_frames", "h264", Pictures(even(50, 25), rate=25, options=ORDERED), shown=range(0, 50, 5), fps=5)
film("gif", "gif", Pictures(even(30, 10, 100), ticks=100, codec="gif", pix_fmt="rgb8"))
film("apng", "png", ten(codec="apng", pix_fmt="rgb24", options={}), written={"format": "apng"})
film("webp", "webp", ten(codec="libwebp", options={}), written={"format": "webp"})


@case([0, 1, 1])
def gif_of_uneven_times(folder: Path) -> Path:
    return animate(folder / "film.gif", [100, 2000, 400])


@case([0, 1, 1])
def webp_of_uneven_times(folder: Path) -> Path:
    return animate(folder / "film.webp", [100, 2000, 400], lossless=True)


@case([0, 1, 1])
def apng_of_uneven_times(folder: Path) -> Path:
    return animate(folder / "film.png", [100, 2000, 400])


def animate(path: Path, milliseconds: Sequence[int], **options) -> Path:
    first, *rest = (Image.fromarray(picture(number)) for number in range(len(milliseconds)))
    first.save(path, save_all=True, append_images=rest, duration=list(milliseconds), loop=0, **options)
    return path


# Pictures.

for degrees in (90, 180, 270):
    film(f"rotated_{degrees}", "mp4", ten(rotation=degrees if degrees < 270 else -90), turn=degrees // 90)
film("rotated_90_mkv", "mkv", ten(rotation=90), turn=1)
film("odd_size", "mkv", ten(codec="ffv1", size=(33, 51), options={}))
film("cropped_size", "mp4", ten(size=(50, 70)))
film("odd_size_444", "mp4", ten(size=(49, 63), pix_fmt="yuv444p"))
film("grey", "mkv", ten(codec="ffv1", pix_fmt="gray", options={}))
film("grey_h264", "mp4", ten(pix_fmt="gray"))
film("ten_bits", "mp4", ten(pix_fmt="yuv420p10le"))
film("ten_bits_hevc", "mp4", ten(codec="libx265", pix_fmt="yuv420p10le", options=X265))
film("twelve_bits", "mkv", ten(codec="ffv1", pix_fmt="yuv422p12le", options={}))
film("alpha", "mkv", ten(codec="ffv1", pix_fmt="bgra", options={}))
film("alpha_vp9", "webm", ten(codec="libvpx-vp9", pix_fmt="yuva420p", options={"cpu-used": "8"}))
film("alpha_png", "mov", ten(codec="png", pix_fmt="rgba", options={}))
film("interlaced", "ts", ten(options={"x264-params": "interlaced=1:keyint=10"}))


@case([0, 10, 20, 30])
def size_changes_in_ts(folder: Path) -> Path:
    return put(folder, "ts", ts(folder, count=20) + ts(folder, count=20, start=2, first=20, size=(96, 128)))


@case(range(0, 50, 5), fps=5)
def size_changes_in_raw_h264(folder: Path) -> Path:
    first = Pictures(even(25, 25), rate=25, options=PLAIN)
    second = Pictures(even(25, 25), range(25, 50), rate=25, size=(96, 64), options=PLAIN)
    return put(folder, "h264", b"".join(film_bytes(part, folder=folder, suffix="h264") for part in (first, second)))


# What is not all there.


def places(path: Path) -> list[int]:
    """Where the packets of a film begin, in bytes."""
    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size]


def first_half(folder: Path, suffix: str, beyond: int = 0, **options: str) -> Path:
    """A film of 30 pictures cut after 14 and `beyond` bytes."""
    path = write_film(folder / f"film.{suffix}", ten(), options=options)
    path.write_bytes(path.read_bytes()[: places(path)[14] + beyond])
    return path


@case([0, 10], notes=True)
def half_an_mp4(folder: Path) -> Path:
    return first_half(folder, "mp4", movflags="faststart")


@case([0, 10], notes=True)
def half_an_mp4_within_a_picture(folder: Path) -> Path:
    return first_half(folder, "mp4", beyond=20, movflags="faststart")


@case([0, 10], notes=True)
def half_an_mkv(folder: Path) -> Path:
    return first_half(folder, "mkv")


@case([0, 10], notes=True)
def half_an_flv(folder: Path) -> Path:
    return first_half(folder, "flv")


@case([0, 10], notes=None)
def half_a_ts(folder: Path) -> Path:
    return first_half(folder, "ts")


@case([0, 10], notes=None)
def half_an_mp4_of_fragments(folder: Path) -> Path:
    path = write_film(folder / "film.mp4", ten(), options={"movflags": "frag_every_frame+empty_moov"})
    data = path.read_bytes()
    fragments = [start for kind, start, _ in boxes(data) if kind == b"moof"]
    path.write_bytes(data[: fragments[14]])
    return path


@case([0, 9, 20], notes=None)
def a_second_cut_out_of_ts(folder: Path) -> Path:
    data = film_bytes(ten(), folder=folder)
    starts = places(put(folder, "ts", data))
    return put(folder, "ts", data[: starts[10]] + data[starts[20] :])


@case(TEN, notes=None)
def two_pictures_zeroed_in_mkv(folder: Path) -> Path:
    path = write_film(folder / "film.mkv", ten(options=PLAIN | {"g": "5"}))
    data = path.read_bytes()
    with av.open(str(path)) as container:
        for packet in list(container.demux(video=0))[12:14]:
            data = data.replace(bytes(packet), bytes(packet.size))
    return put(folder, "mkv", data)


@case(TEN, notes=None)
def noise_before_the_film(folder: Path) -> Path:
    return put(folder, "ts", np.random.default_rng(0).bytes(1000) + ts(folder))


@case(TEN, notes=None)
def noise_after_the_film(folder: Path) -> Path:
    return put(folder, "ts", ts(folder) + np.random.default_rng(0).bytes(1000))


@case(TEN, notes=None)
def zeros_after_the_film(folder: Path) -> Path:
    path = write_film(folder / "film.mkv", ten())
    return put(folder, "mkv", path.read_bytes() + bytes(5000))


@case(TEN)
def wrong_suffix(folder: Path) -> Path:
    return write_film(folder / "film.mkv", ten()).rename(folder / "film.mp4")


@refused
def mp4_cut_before_its_index(folder: Path) -> Path:
    path = write_film(folder / "film.mp4", ten())
    start = next(start for kind, start, _ in boxes(path.read_bytes()) if kind == b"moov")
    return put(folder, "mp4", path.read_bytes()[:start])


@refused
def mp4_cut_within_its_index(folder: Path) -> Path:
    path = write_film(folder / "film.mp4", ten(), options={"movflags": "faststart"})
    start, end = next((start, end) for kind, start, end in boxes(path.read_bytes()) if kind == b"moov")
    return put(folder, "mp4", path.read_bytes()[: (start + end) // 2])


@refused
def mp4_whose_index_says_nothing(folder: Path) -> Path:
    """No track."""
    data = write_film(folder / "film.mp4", ten()).read_bytes()
    return put(folder, "mp4", data.replace(b"trak", b"free"))


@refused
def sound_only(folder: Path) -> Path:
    return write_sound(folder / "film.mp4", "aac")


@refused
def header_only(folder: Path) -> Path:
    path = write_film(folder / "film.mkv", ten())
    return put(folder, "mkv", path.read_bytes()[: places(path)[0]])


@refused
def lasting_longer_than_a_life(folder: Path) -> Path:
    """A header of AVI with 1e9 seconds per frame."""
    data = write_film(folder / "film.avi", Pictures(FRAMES, ticks=10, options=PLAIN)).read_bytes()
    place = data.index(b"strh") + 8 + 20
    return put(folder, "avi", data[:place] + struct.pack("<II", 10**9, 1) + data[place + 8 :])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """Makes the film of a case, once."""
    paths: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in paths:
            paths[name] = CASES[name].make(tmp_path_factory.mktemp("film"))
        return paths[name]

    return make


def open_case(path: Path, case: Case):
    return open_video(path, size=64, fps=case.fps, max_frames=case.limit)


@pytest.mark.parametrize("name", CASES)
def test_the_pictures_on_screen_are_read(made, name):
    case = CASES[name]
    source = open_case(made(name), case)
    frames = np.concatenate(list(source.batches(16)))
    assert [number_of(np.rot90(frame, -case.turn)) for frame in frames] == list(case.shown)
    instants = [k / case.fps for k in range(len(case.shown))] if case.seconds is None else case.seconds
    np.testing.assert_allclose(source.seconds, instants, atol=0.051)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.notes is not None])
def test_what_is_missing_is_reported(made, name):
    notes = open_case(made(name), CASES[name]).notes
    assert bool(notes) == CASES[name].notes, notes
    assert all(note and "\n" not in note for note in notes)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(VideoError) as caught:
        open_video(REFUSED[name](tmp_path), size=64)
    assert "\n" not in str(caught.value)
