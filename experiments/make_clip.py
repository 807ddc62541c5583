"""Make one test video for the tiny model, with questions and their answers.

A picture of a dog, a car, a banana … comes and goes on a moving background, generated or (--footage) real video. The
same flags make the same clip and the same questions.

    python -m experiments.make_clip --seed 7 --out clip.mp4 --answers clip.json

The answers file holds "questions", a list of {"question", "answer", "type"} ("when" questions
also have "start_s", the true start: an answer within 4 seconds of it counts as right; "evidence" holds the spans
in seconds that the answer rests on); "seconds"; and "events", what is on screen from when to when. Question types:
"exists", "first", "when", "what", "count", "between", "order". They go round, and which one comes first goes round with
the seed; a type that the clip does not allow is replaced by another.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

import numpy as np

from experiments.synthetic import clips, encode, pictures, questions


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the long usage belongs to --help."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _whole(low: int, high: int, even: bool = False):
    """Reads a whole number between `low` and `high`."""

    def read(text: str) -> int:
        wanted = f"{'an even' if even else 'a whole'} number from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if not low <= value <= high or even and value % 2:
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    return read


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="make_clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seed", type=_whole(0, 2**62), required=True, help="which clip: same seed (and flags), same clip"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="F.mp4", help="the video to write")
    parser.add_argument(
        "--answers", type=pathlib.Path, required=True, metavar="F.json", help="the questions and answers to write"
    )
    parser.add_argument(
        "--seconds", type=_whole(8, 512), help="length of the clip, 8 to 512 (default: drawn from 32 to 64)"
    )
    parser.add_argument(
        "--questions", type=_whole(1, 64), default=7, help="how many questions (default: 7, one of each type)"
    )
    parser.add_argument(
        "--size",
        type=_whole(16, 2048, even=True),
        default=196,
        help="side of the square frame in pixels, even (default: 196)",
    )
    parser.add_argument("--rate", type=_whole(1, 60), default=8, help="frames per second of the video (default: 8)")
    parser.add_argument(
        "--footage",
        choices=clips.FOOTAGE,
        default="",
        help="real video behind the pictures: train (half of the scenes) or test (all; default: none)",
    )
    flags = parser.parse_args(arguments)
    for path in (flags.out, flags.answers):
        if not path.parent.is_dir():
            parser.error(f"no folder {path.parent} to write {path.name} into")
        if path.is_dir():
            parser.error(f"{path} is a folder")
    if flags.out.resolve() == flags.answers.resolve():
        parser.error("--out and --answers name the same file")
    return flags


def main(arguments: list[str] | None = None) -> int:
    flags = _flags(arguments)
    rng = np.random.default_rng(flags.seed)
    drawn = clips.draw_seconds(rng)  # drawn even when not used: --seconds changes nothing else
    clip = clips.draw_clip(rng, seconds=flags.seconds or drawn, names=pictures.load()[0], footage=flags.footage)
    asked = questions.questions(rng, clip, flags.questions, first=flags.seed)
    answers = {
        "questions": [_plain(question) for question in asked],
        "seconds": clip.seconds,
        "events": [{"name": e.name, "start_s": e.start_s, "stop_s": e.stop_s} for e in clip.events],
    }
    try:
        encode.render_mp4(clip, flags.out, flags.size, flags.rate)
        part = flags.answers.with_name(f".{flags.answers.name}.{os.getpid()}.part")
        part.write_text(json.dumps(answers, indent=1) + "\n")
        part.replace(flags.answers)
    except OSError as error:
        print(f"make_clip: cannot write: {error}", file=sys.stderr)
        return 1
    return 0


def _plain(question: questions.Question) -> dict:
    fields = dataclasses.asdict(question)
    del fields["chance"]
    if fields["start_s"] is None:
        del fields["start_s"]
    return fields


if __name__ == "__main__":
    sys.exit(main())
