"""Films of which something is missing, and files that cannot be read."""

import struct
from pathlib import Path

import av
import numpy as np
from clips import write_sound
from films import Pictures, boxes, even, film_bytes, write_film
from oddities import PLAIN, TEN, case, put, refused, ten, ts


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
    data = write_film(folder / "film.avi", Pictures(even(30, 10, 10), ticks=10, options=PLAIN)).read_bytes()
    place = data.index(b"strh") + 8 + 20
    return put(folder, "avi", data[:place] + struct.pack("<II", 10**9, 1) + data[place + 8 :])
