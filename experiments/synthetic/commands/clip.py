"""Make one test video for nano, with questions and answers.

Pictures of a dog, a car, a banana … appear and disappear on a moving background. The same flags make the same files.
Existing files are replaced when the new ones are complete.

    python -m experiments.synthetic clip --seed 7 --out clip.mp4 --answers clip.json

The answers file has "questions", a list of {"question", "answer", "type", "evidence"}, where "evidence" lists the
(start, stop) in seconds that the answer depends on; "seconds", the length; and "events", when each picture is on
screen. Questions of type "when" also have "start_s", the true start: an answer within 4 seconds of it is right. The
types are exists, first, when, what, count, between and order, in turn, beginning at a type that depends on the seed. A
type that the clip does not allow is replaced by another.
"""

import argparse
import dataclasses
import shlex

import numpy as np

from experiments.synthetic import clips, encode, files, pictures, questions
from experiments.synthetic.commands import arguments


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=arguments.integer(8, 512),
        metavar="S",
        help="length of the clip, 8 to 512 (default: random, 32 to 64)",
    )
    arguments.add_count(parser, "--questions", 7, "number of questions", most=64)
    arguments.add_footage(parser, default="")
    text = "of the encoder: x264's constant rate factor, 0 (lossless) to 51"
    arguments.add_integer(parser, "--quality", arguments.integer(0, 51), encode.QUALITY, text)
    arguments.add_video(parser, rate=8)
    arguments.add_files(parser)


def run(flags: argparse.Namespace) -> str:
    arguments.check_files(flags.out, flags.answers)
    rng = np.random.default_rng(flags.seed)
    length = clips.draw_seconds(rng)  # also drawn with --seconds, which thus changes nothing else
    clip = clips.draw_clip(rng, seconds=flags.seconds or length, names=pictures.load()[0], footage=flags.footage)
    asked = questions.questions(rng, clip, flags.questions, first=flags.seed)
    encode.render_mp4(clip, flags.out, flags.size, flags.rate, flags.quality)
    files.write(flags.answers, files.as_json(answers(clip, asked)))
    return summary(flags, asked[0])


def answers(clip: clips.Clip, asked: list[questions.Question]) -> dict:
    """The content of an answers file."""
    return {
        "questions": [_fields(question) for question in asked],
        "seconds": clip.seconds,
        "events": [{"name": e.name, "start_s": e.start_s, "stop_s": e.stop_s} for e in clip.events],
    }


def _fields(question: questions.Question) -> dict:
    fields = dataclasses.asdict(question)
    del fields["chance"]
    if fields["start_s"] is None:
        del fields["start_s"]
    return fields


def summary(flags: argparse.Namespace, question: questions.Question) -> str:
    """What was written, and a command that asks one of the questions."""
    command = shlex.join(["vxl2", "ask", str(flags.out), question.question])
    return f"Wrote {flags.out} and {flags.answers}.\nNext: {command}   # expected: {question.answer}"
