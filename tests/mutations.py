"""Damage generated films at random and read each in a process of its own: nothing but frames or one line may come out.

    python -m tests.mutations --films 300 [--seed 0]

Films of several containers and codecs are damaged by flipped bits, zeros, truncation, blocks that are repeated, removed
or exchanged, and pieces of another film. Each is opened and read twice, under a limit of its address space. A problem is
an error other than VideoError, or of several lines; a process that ends otherwise, takes too long or too much memory; and
frames that differ when they are read again. Each has a line, with --keep also its film. Exit code: 1 if there was one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "video")]

from films import Pictures, Sound, even, write_film

SECONDS = 20
"""Of a process, which starts an interpreter and reads a film of 3 s twice."""
MEMORY_MB, ADDRESS_MB = 1000, 4000
"""Peak of resident memory, and of address space: threads and libraries reserve more than they use."""

GROUPS = {"g": "12", "bf": "2"}
HEVC = {"x265-params": "keyint=12:log-level=none:pools=1"}
FILMS: dict[str, tuple[str, dict]] = {
    "h264.mp4": ("libx264", GROUPS),
    "h264_faststart.mp4": ("libx264", GROUPS),
    "h264_fragments.mp4": ("libx264", GROUPS),
    "h264.mkv": ("libx264", GROUPS),
    "h264.ts": ("libx264", GROUPS),
    "h264.flv": ("libx264", GROUPS),
    "h264.avi": ("libx264", {"g": "12", "bf": "0"}),
    "h264.h264": ("libx264", GROUPS),
    "hevc.mp4": ("libx265", HEVC),
    "hevc.ts": ("libx265", HEVC),
    "vp8.webm": ("libvpx", {"g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "cpu-used": "8"}),
    "mpeg2.mpg": ("mpeg2video", GROUPS),
    "mpeg4.avi": ("mpeg4", GROUPS),
    "mjpeg.mov": ("mjpeg", {}),
    "gif.gif": ("gif", {}),
    "apng.png": ("apng", {}),
    "webp.webp": ("libwebp", {}),
}
"""Name → encoder and its options."""
FORMATS = {"apng.png": {"format": "apng"}, "webp.webp": {"format": "webp"}}
FORMATS |= {"h264_faststart.mp4": {"options": {"movflags": "faststart"}}}
FORMATS |= {"h264_fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}}}
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "apng": "rgb24"}


def write_films(folder: Path) -> dict[str, bytes]:
    """Films of 3 s, some with sound, and their content."""
    found = {}
    for name, (codec, options) in FILMS.items():
        ticks = 25 if name.endswith(".avi") else 100
        pictures = Pictures(
            even(75, 25, ticks),
            ticks=ticks,
            rate=25,
            codec=codec,
            pix_fmt=PIXELS.get(codec, "yuv420p"),
            options=options,
        )
        sound = [Sound(0, 3)] if name in ("h264.mp4", "h264.mkv", "h264.ts") else []
        found[name] = write_film(folder / name, pictures, *sound, **FORMATS.get(name, {})).read_bytes()
    return found


def flip_bits(data: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 10, 100])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_bits_of_the_header(data: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 5, 20])):
        data[rng.randrange(min(len(data), 1000))] ^= 1 << rng.randrange(8)


def flip_bits_of_the_end(data: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 5, 20])):
        data[-1 - rng.randrange(min(len(data), 2000))] ^= 1 << rng.randrange(8)


def zero(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = piece(data, rng)
    data[start:end] = bytes(end - start)


def truncate(data: bytearray, other: bytes, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def repeat(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = piece(data, rng)
    data[end:end] = data[start:end] * rng.randint(1, 3)


def remove(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = piece(data, rng)
    del data[start:end]


def exchange(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = piece(data, rng)
    middle = rng.randint(start, end)
    data[start:end] = data[middle:end] + data[start:middle]


def splice(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = piece(other, rng)
    place = rng.randrange(len(data))
    data[place : place + rng.choice([0, end - start])] = other[start:end]


def join(data: bytearray, other: bytes, rng: random.Random) -> None:
    data[rng.randrange(len(data) // 2, len(data)) :] = other


DAMAGES: list[Callable[[bytearray, bytes, random.Random], None]] = [
    *(flip_bits, flip_bits_of_the_header, flip_bits_of_the_end, zero, truncate, repeat, remove, exchange, splice, join),
]


def piece(data: bytes | bytearray, rng: random.Random) -> tuple[int, int]:
    """Start and end of a random piece, whole packets of MPEG-TS in every second case."""
    length = rng.choice([8, 188, 4096, max(1, len(data) // 4)])
    start = rng.randrange(len(data))
    unit = rng.choice([1, 188])
    return start // unit * unit, min(len(data), (start + length) // unit * unit + unit)


class Result(NamedTuple):
    """What reading a film came to: "refused", "read with notes", "read without notes", or a problem."""

    kind: str
    problem: str = ""
    peak_mb: float = 0


def read(path: Path) -> None:
    """In the child: read a film twice, and print a JSON line."""
    import numpy as np

    from experiments.bench.workers import peak
    from vxl2_jax.errors import VideoError
    from vxl2_jax.video import open_video

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_MB * 2**20,) * 2)

    def frames() -> tuple[np.ndarray, list[str]]:
        source = open_video(path, size=32, fps=4, max_frames=256)
        found = np.concatenate(list(source.batches(16)))
        assert len(found) == len(source.seconds), "as many times as frames"
        assert np.all(np.diff(source.seconds) >= 0), "times in order"
        return found, list(getattr(source, "notes", ()))

    found: dict = {}
    try:
        (first, notes), (second, _) = frames(), frames()
        found = {"notes": notes, "same": first.shape == second.shape and bool((first == second).all())}
    except VideoError as error:
        found = {"refused": str(error)}
    print(json.dumps({**found, "peak_mb": peak() / 2**20}), flush=True)


def try_film(path: Path) -> Result:
    command = [sys.executable, "-m", "tests.mutations", "--read", str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for last in (False, True):  # on a busy machine a process may wait for long: a film that hangs does so again
        try:
            ended = subprocess.run(command, capture_output=True, timeout=SECONDS, cwd=ROOT, env=environment)
            break
        except subprocess.TimeoutExpired:
            if last:
                return Result("problem", f"not done within {SECONDS} s, twice")
            print(f"{path.name}: not done within {SECONDS} s; trying again", file=sys.stderr, flush=True)
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return Result("problem", f"ended with code {ended.returncode}: {last[0][:200]}")
    found = json.loads(ended.stdout.splitlines()[-1])
    if found["peak_mb"] > MEMORY_MB:
        return Result("problem", f"{found['peak_mb']:.0f} MB", found["peak_mb"])
    if "refused" in found:
        problem = "a message of several lines" if "\n" in found["refused"] else ""
        return Result("problem" if problem else "refused", problem, found["peak_mb"])
    # FFmpeg's decoder of MJPEG leaves parts of a damaged picture as they happen to be in memory.
    if not (found["same"] or "mjpeg" in path.name):
        return Result("problem", "other frames when it is read again", found["peak_mb"])
    return Result("read with notes" if found["notes"] else "read without notes", "", found["peak_mb"])


def damaged(whole: dict[str, bytes], number: int, seed: int) -> tuple[str, str, bytes]:
    """(name of the film, names of the damages, content) of one damaged film, which depends only on its number."""
    rng = random.Random(f"{seed} {number}")
    names = list(whole)
    name = names[number % len(names)]
    data = bytearray(whole[name])
    chosen = rng.sample(DAMAGES, rng.choice([1, 1, 2]))
    for damage in chosen:
        if len(data) > 1:
            damage(data, whole[rng.choice(names)], rng)
    return name, "+".join(damage.__name__ for damage in chosen), bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="films that are read at the same time")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for the films with problems")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read)
        return 0
    if min(args.films, args.workers) < 1:
        parser.error("--films and --workers must be at least 1")
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    kinds: Counter[str] = Counter()
    peak_mb = 0.0
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        folder = Path(name)
        whole = write_films(folder)

        def one(number: int) -> tuple[str, bytes, Result]:
            film, damages, data = damaged(whole, number, args.seed)
            path = folder / f"{number}-{film}"
            path.write_bytes(data)
            result = try_film(path)
            path.unlink()
            return f"{path.name} ({damages})", data, result

        for about, data, result in pool.map(one, range(args.films)):
            kinds[result.kind] += 1
            peak_mb = max(peak_mb, result.peak_mb)
            if result.problem:
                print(f"{about}: {result.problem}", flush=True)
                if args.keep:
                    (args.keep / about.split()[0]).write_bytes(data)
    order = ("refused", "read with notes", "read without notes", "problem")
    print(f"{args.films} films: {', '.join(f'{kinds[kind]} {kind}' for kind in order)}; peak {peak_mb:.0f} MB")
    return int(kinds["problem"] > 0)


if __name__ == "__main__":
    sys.exit(main())
