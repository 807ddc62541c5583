"""Answer many questions about many videos with `vxl2 batch`, and check that the process does not grow.

    python -m tests.soak --videos 100 --questions 1000 [--seed 0]

The videos have different lengths, in an order in which each tenth has short and long ones; so have the questions. After
each video the process's resident memory, its memory maps and its compiled programs are counted, and the highest values
of each tenth of the videos are printed. The exit code is 1 if one grows by more than 2 % from the middle to the last
tenth, or a job fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import av
import jax
import numpy as np

from vxl2_jax import cli

SECONDS = (64, 163)
"""Of the shortest and the longest video; a frame a second."""
GROWTH = 0.02
_WORDS = [
    "what",
    "where",
    "when",
    "which",
    "picture",
    "dog",
    "cat",
    "car",
    "umbrella",
    "appears",
    "is",
    "there",
    "after",
    "before",
    "at",
    "second",
    "does",
    "it",
    "show",
]
_GOLDEN = 0.618034


class Usage(NamedTuple):
    """What a process holds: resident bytes, memory maps, compiled programs."""

    memory: int
    maps: int
    programs: int


def usage() -> Usage:
    """Of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_text().count("\n")
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), maps, len(jax.devices()[0].client.live_executables()))


def prepare(folder: Path, videos: int, questions: int, seed: int) -> Path:
    """Write the videos and the file of jobs, and return its path."""
    rng = random.Random(seed)
    with (folder / "jobs.jsonl").open("w") as file:
        for number in range(videos):
            share = number * _GOLDEN % 1  # evenly spread over any run of numbers
            write_video(folder / f"{number}.mp4", round(SECONDS[0] + share * (SECONDS[1] - SECONDS[0])), seed + number)
            count = (number + 1) * questions // videos - number * questions // videos
            asked = [" ".join(rng.choices(_WORDS, k=rng.randint(3, 12))) + "?" for _ in range(count)]
            file.write(json.dumps({"video": f"{number}.mp4", "questions": asked}) + "\n")
    return folder / "jobs.jsonl"


def write_video(path: Path, frames: int, seed: int) -> None:
    """One frame a second, each of a colour of its own."""
    colours = np.random.default_rng(seed).integers(0, 256, (frames, 1, 1, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            pixels = np.broadcast_to(colour, (96, 96, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def watch_growth(answers: Path, tenth: int, seen: list[Usage], stop: threading.Event) -> None:
    """Append the usage to `seen` whenever a line has been added to the answers, and print each tenth."""
    while not stop.wait(0.1):
        lines = answers.read_bytes().count(b"\n") if answers.exists() else 0
        for _ in range(lines - len(seen)):
            seen.append(usage())
            if len(seen) % tenth == 0:
                most = highest(seen[-tenth:])
                print(f"{len(seen):6}{most.memory / 1e6:9,.0f} MB{most.maps:9,}{most.programs:10,}", flush=True)


def highest(part: list[Usage]) -> Usage:
    """The maximum of each number."""
    return Usage(*map(max, zip(*part, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--questions", type=int, default=1000, help="in all, divided over the videos")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.videos < 10 or args.questions < args.videos:
        parser.error("at least 10 videos, and a question about each")
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    seen: list[Usage] = []
    tenth, stop, begin = args.videos // 10, threading.Event(), time.monotonic()
    print(f"{'videos':>6}{'memory':>12}{'maps':>9}{'programs':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs, answers = prepare(Path(folder), args.videos, args.questions, args.seed), Path(folder) / "answers.jsonl"
        watcher = threading.Thread(target=watch_growth, args=(answers, tenth, seen, stop))
        watcher.start()
        code = cli.main(["batch", str(jobs), "--out", str(answers), "--quiet"])
        time.sleep(1)
        stop.set()
        watcher.join()
        rows = [json.loads(line) for line in answers.read_text().splitlines()] if answers.exists() else []
    answered = sum(len(row.get("answers", ())) for row in rows)
    if code or answered < args.questions or len(seen) < args.videos:
        print(f"{answered:,} of {args.questions:,} questions answered, exit code {code}")
        return 1
    half = len(seen) // 2
    middle, last = highest(seen[half - tenth : half]), highest(seen[-tenth:])
    growth = [after / before - 1 for before, after in zip(middle, last, strict=True)]
    shares = ", ".join(f"{name} {share:+.1%}" for name, share in zip(Usage._fields, growth, strict=True))
    print(
        f"{answered:,} questions about {len(seen):,} videos answered in {time.monotonic() - begin:,.0f} s; "
        f"from the middle to the end: {shares}"
    )
    return int(max(growth) > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
