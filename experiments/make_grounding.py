"""Make a small temporal-grounding benchmark of generated clips in the form of Charades-STA or QVHighlights.

    python -m experiments.make_grounding --form charades_sta --clips 20 --out runs/sta
    python -m experiments.make_grounding --form qvhighlights --clips 20 --seconds 128 160 --out runs/qvh

The folder receives videos/ and two annotation files under the published names, one of the videos and one of a training
split, which is there for its lengths only and has no videos. Sentences are of the form "the dog appears". Charades-STA
gives a sentence one window, so that only pictures shown once are asked about; QVHighlights gives it several, on a grid of
two seconds. `python -m experiments.studies grounding --help` says how to go on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import make_clip
from experiments.synthetic import clips, encode, pictures, questions

CLIP_S = 2  # seconds of QVHighlights' grid
_TRAINING = 4  # times as many clips as are rendered
_FILES = {
    "charades_sta": ("charades_sta_test.txt", "charades_sta_train.txt"),
    "qvhighlights": ("highlight_val_release.jsonl", "highlight_train_release.jsonl"),
}


def charades_sta(video: str, clip: clips.Clip) -> list[str]:
    """A line for every picture that the clip shows once."""
    once = [events[0] for events in questions.shows(clip).values() if len(events) == 1]
    return [f"{video} {event.start_s:.1f} {event.stop_s:.1f}##the {event.name} appears." for event in once]


def qvhighlights(video: str, clip: clips.Clip, first: int) -> list[str]:
    """A line for every picture, its windows on the grid; `first`: the number of the first query."""
    found = []
    for number, (name, events) in enumerate(questions.shows(clip).items(), first):
        end = round(clip.seconds)  # in the middle of the grid's last step, if it is odd
        windows = [
            [CLIP_S * math.floor(e.start_s / CLIP_S), min(CLIP_S * math.ceil(e.stop_s / CLIP_S), end)] for e in events
        ]
        found.append(
            json.dumps(
                {
                    "qid": number,
                    "query": f"the {name} appears",
                    "duration": end,
                    "vid": video,
                    "relevant_windows": windows,
                    "relevant_clip_ids": [
                        i for start, stop in windows for i in range(start // CLIP_S, -(-stop // CLIP_S))
                    ],
                }
            )
        )
    return found


def annotate(form: str, drawn: Sequence[tuple[str, clips.Clip]]) -> str:
    """An annotation file of clips and their names."""
    found: list[str] = []
    for video, clip in drawn:
        found += charades_sta(video, clip) if form == "charades_sta" else qvhighlights(video, clip, len(found))
    return "".join(line + "\n" for line in found)


def draw(rng: np.random.Generator, form: str, split: str, count: int, seconds: Sequence[int], footage: str):
    """(name, clip) of a split; QVHighlights names a video after its source and the seconds of it."""
    for number in range(count):
        length = int(rng.integers(seconds[0], seconds[1] + 1))
        clip = clips.draw_clip(rng, seconds=length, names=pictures.load()[0], footage=footage)
        name = f"{split}{number:03d}"
        yield (f"{name}_0.0_{clip.seconds:.1f}" if form == "qvhighlights" else name.upper()), clip


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_clip._Parser(
        prog="make_grounding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = make_clip._whole
    parser.add_argument("--form", choices=list(_FILES), required=True, help="whose form")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to make; it must not be there"
    )
    parser.add_argument("--clips", type=whole(1, 10000), default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument(
        "--seconds",
        type=whole(16, 900),
        nargs=2,
        default=clips.RANGE_S,
        metavar=("A", "B"),
        help="shortest and longest clip (default: 32 64)",
    )
    parser.add_argument("--seed", type=whole(0, 2**62), default=0, help="of the clips (default: 0)")
    parser.add_argument(
        "--footage", choices=clips.FOOTAGE, default="test", help="real video behind the pictures (default: test)"
    )
    parser.add_argument(
        "--size", type=whole(16, 2048, even=True), default=196, metavar="PX", help="side of the frames (default: 196)"
    )
    parser.add_argument("--rate", type=whole(1, 60), default=4, metavar="FPS", help="frames per second (default: 4)")
    flags = parser.parse_args(arguments)
    if flags.seconds[0] > flags.seconds[1]:
        parser.error(f"--seconds: {flags.seconds[0]} is above {flags.seconds[1]}")
    if flags.out.exists():
        parser.error(f"{flags.out} is there already; choose another --out")
    return flags


def main(arguments: list[str] | None = None) -> int:
    flags = _flags(arguments)
    rng = np.random.default_rng(flags.seed)
    drawn = list(draw(rng, flags.form, "clip", flags.clips, flags.seconds, flags.footage))
    training = list(draw(rng, flags.form, "train", _TRAINING * flags.clips, flags.seconds, flags.footage))
    out = flags.out.resolve()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")  # so that the folder is there whole or not at all
    try:
        (part / "videos").mkdir(parents=True)
        for name, clip in drawn:
            encode.render_mp4(clip, part / "videos" / f"{name}.mp4", flags.size, flags.rate)
        for file, split in zip(_FILES[flags.form], (drawn, training), strict=True):
            (part / file).write_text(annotate(flags.form, split))
        part.rename(out)
    except OSError as error:
        print(f"make_grounding: cannot write: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
