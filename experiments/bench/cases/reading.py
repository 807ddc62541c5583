"""Reading films: CPU milliseconds and wall seconds per chosen frame, against other readers and against the packets needed.

examples:
  python -m experiments.synthetic reading-films runs/reading-films
  python -m experiments.bench reading runs/reading-films --python-others VENV/bin/python --before OLD_CHECKOUT

All readers give the same frames, those that we choose at --fps, as 384 × 384 pictures of Pillow's bicubic filter. Each
has a process of its own per film, reads once, and then in turn with the others; medians count. CPU time is that of all
threads of the process, opening the film included, starting the interpreter and importing not. "packets needed" decodes
with one thread exactly what the chosen frames need, which it knows beforehand: the floor is its decoding, conversion and
resizing. The error is the mean absolute difference to its frames over 255; ours must have none.

VENV needs numpy, pillow and what is to be compared: torchcodec (with torch), decord2, opencv-python-headless. torchcodec
is given the FFmpeg of PyAV's wheel. What cannot be imported or run leaves a row that says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from experiments.bench import machine
from experiments.bench.arguments import names, numbers, positive
from experiments.bench.cases.comparison import Side
from experiments.bench.machine import Session, UsageError
from experiments.bench.measure import Timing
from experiments.bench.report import BASELINE, OURS, Row, joined
from vxl2_jax.video import open_video

NEEDED = "packets needed"
OTHERS = ["torchcodec", "decord2", "opencv"]
FLOOR = ("decoding", "conversion", "resizing")
CPU, WALL, FIRST = "CPU per frame", "wall per frame", "first batch"
_ROOT = Path(__file__).resolve().parents[3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(samples=5)
    add = parser.add_argument
    add("films", type=Path, nargs="+", metavar="FILM", help="films, or folders of films")
    add("--before", type=Path, metavar="DIR", help="another checkout of this repository, whose reader is compared")
    add("--python-others", default=sys.executable, metavar="FILE", help="an interpreter that has the other readers")
    add("--readers", type=names(OTHERS), default=",".join(OTHERS), metavar="NAMES",
        help=f"others to compare with, of {','.join(OTHERS)}, or none (default: all)")  # fmt: skip
    add("--threads", type=numbers, default=[], metavar="N,N", help="ours also with so many threads of reading")
    add("--others-threads", type=positive, metavar="N", help="threads of the others (default: as each has them)")
    add("--size", type=positive, default=384, metavar="PX", help="side of the frames (384)")
    add("--fps", type=float, default=1.0, metavar="N", help="frames per second that are read (1)")
    add(
        "--first", type=positive, metavar="N", help="read the first N of these frames only, for how soon they are there"
    )


def describe(args: argparse.Namespace) -> tuple[dict[str, Any], None]:
    """The machine. Reading has no ceilings. Raises UsageError for arguments that name nothing."""
    films(args.films)
    if args.before and not (args.before / "vxl2_jax" / "video").is_dir():
        raise UsageError(f"--before {args.before}: no checkout of this repository")
    return {**machine.describe(jax.devices("cpu")[0]), "timings": "measured"}, None


@dataclass(frozen=True)
class Reader:
    """One side of the comparison: its name in the report, its requests and where it runs."""

    name: str
    request: dict[str, Any]
    python: str | None = None
    kind: str = BASELINE
    env: dict[str, str] | None = None


def readers(args: argparse.Namespace, links: Path) -> list[Reader]:
    """All sides; `links` is an empty folder for names of libraries."""
    found = [Reader(NEEDED, {"reader": "needed"})]
    found += [
        Reader(f"ours, {count} threads" if count else "ours", {"reader": "ours", "checkout": str(_ROOT), "threads": count},
               kind=OURS)
        for count in [None, *args.threads]
    ]  # fmt: skip
    if args.before:
        found.append(Reader("ours before", {"reader": "ours", "checkout": str(args.before.resolve())}))
    libraries = ffmpeg_of_pyav(links) if "torchcodec" in args.readers else {}
    for name in args.readers:
        env = libraries if name == "torchcodec" else {}
        found.append(Reader(name, {"reader": name, "threads": args.others_threads}, args.python_others, env=env))
    return found


def ffmpeg_of_pyav(links: Path) -> dict[str, str]:
    """Environment in which torchcodec finds the FFmpeg of PyAV's wheel, under the names that FFmpeg gives its libraries."""
    spec = importlib.util.find_spec("av")
    folder = Path(spec.origin).parents[1] / "av.libs" if spec and spec.origin else links
    for library in folder.glob("*.so.*"):
        if match := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+(\.so\.\d+)[\d.]*", library.name):
            (links / f"{match[1]}{match[2]}").symlink_to(library)
    before = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join([str(links), str(folder), *([before] if before else [])])}


def films(paths: list[Path]) -> list[Path]:
    """The films themselves and those of folders, sorted. Raises UsageError if there are none."""
    found = [
        film
        for path in paths
        for film in (sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path])
    ]
    if not found:
        raise UsageError("no films; make some: python -m experiments.synthetic reading-films OUT")
    return found


def run(session: Session) -> None:
    args = session.args
    with tempfile.TemporaryDirectory() as folder:
        links = Path(folder) / "lib"
        links.mkdir()
        sides = readers(args, links)
        for film in films(args.films):
            for row in compare(session, film, sides, Path(folder)):
                session.report.add(row)


def compare(session: Session, film: Path, all_readers: list[Reader], folder: Path) -> list[Row]:
    """Read one film with every reader, in turn. Rows of the times of each, and of the stages of the floor."""
    args, report = session.args, session.report
    source = open_video(film, size=args.size, fps=args.fps)
    chosen = source.indices[: args.first].tolist()
    case = f"{film.name}, {len(chosen)} of {source.total_frames} frames"
    common = {"task": "read", "film": str(film.resolve()), "size": args.size, "fps": args.fps, "threads": None}
    common["indices"] = chosen
    outputs = {reader.name: folder / f"{number}.npy" for number, reader in enumerate(all_readers)}
    sides = {reader.name: Side(reader.name, "reading_worker", reader.python) for reader in all_readers}
    with ExitStack() as stack:
        for reader in all_readers:
            request = {**common, **reader.request, "out": str(outputs[reader.name])}
            sides[reader.name].start(stack, request, report.left_s, reader.env or {})
        for turn in range(args.samples):
            print(f"{film.name}: turn {turn + 1} of {args.samples}", file=sys.stderr, flush=True)
            for side in sides.values():
                side.run_once()
        for side in sides.values():
            side.finish()
    expected = _frames(outputs[NEEDED]) if not sides[NEEDED].failure else None
    floor = stages(sides[NEEDED], len(chosen))
    found = []
    for reader in all_readers:
        frames = _frames(outputs[reader.name]) if not sides[reader.name].failure else None
        row = Row(case, reader.name, CPU, kind=reader.kind, tolerance=0 if reader.kind == OURS else np.inf)
        found += reader_rows(row, sides[reader.name], len(chosen), floor, difference(frames, expected))
    stage_row = Row(case, NEEDED, "", kind=BASELINE)
    found += [replace(stage_row, computes=stage, timing=timing) for stage, timing in floor.items()]
    for path in outputs.values():
        path.unlink(missing_ok=True)
    return found


def stages(side: Side, frames: int) -> dict[str, Timing]:
    """CPU seconds per frame of each stage of the reader that knows the packets needed; empty if it did not run."""
    rounds = [line["stages"] for line in side.replies if line.get("stages")]
    return {stage: Timing(tuple(one[stage] / frames for one in rounds)) for stage in rounds[0]} if rounds else {}


def difference(found: np.ndarray | None, expected: np.ndarray | None) -> tuple[float, int] | None:
    """Mean and largest absolute difference, in levels of 255."""
    if found is None or expected is None:
        return None
    levels = [np.abs(a.astype(np.int16) - b) for a, b in zip(found, expected, strict=True)]
    return float(np.mean([one.mean() for one in levels])), int(max(one.max() for one in levels))


def reader_rows(
    row: Row, side: Side, frames: int, floor: dict[str, Timing], differs: tuple[float, int] | None
) -> list[Row]:
    """Rows of CPU time, wall time and time to the first batch; one row that says why if it was not measured."""
    rounds = [line for line in side.replies if "seconds" in line]
    if side.failure or not rounds:
        return [replace(row, note=f"not run: {side.failure or 'no time was left'}")]
    cpu = Timing(tuple(line["cpu_s"] / frames for line in rounds))
    wall = Timing(tuple(line["seconds"] / frames for line in rounds))
    soon = Timing(tuple(line["first_s"] for line in rounds))
    memory = median(line["peak_bytes"] for line in rounds)
    above = median(line["peak_bytes"] - line["before_bytes"] for line in rounds)
    least = sum(floor[stage].seconds for stage in FLOOR) if floor else None
    target = 0.1 * floor["decoding"].seconds + least if least else None
    details = {"version": side.replies[0].get("version"), "runs": rounds, "chosen_frames": frames}
    details |= {"floor_s": least, "target_s": target, "difference": differs}
    note = joined(
        f"{cpu.seconds / least:.3f} × the floor" if least else "",
        f"{cpu.seconds / target:.3f} × the target" if target and row.kind == OURS else "",
        f"differs by {differs[0]:.2g} of 255 on average, {differs[1]} at most" if differs else "",
        f"peak with the interpreter {memory / 2**20:.0f} MiB",
        f"version {details['version']}",
    )
    error = None if differs is None else differs[0] / 255
    return [
        replace(row, timing=cpu, memory_bytes=max(above, 1), error=error, note=note, details=details),
        replace(row, computes=WALL, timing=wall, note=f"{wall.seconds * frames:.3g} s in all"),
        replace(row, computes=FIRST, timing=soon),
    ]


def _frames(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
