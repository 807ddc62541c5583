"""Make one video of hours in which a few pictures, the needles, each appear once, with questions and answers.

Videos (without --loop, generated backgrounds) are repeated; one needle appears for 8 to 16 seconds in each equal part
of the film, none in the first and last 16 seconds. Existing files are replaced when the new ones are complete.

    python -m experiments.synthetic film --hours 2.8 --seed 7 --loop a.mp4 b.mp4 --out long.mp4 --answers long.json

The answers file has the fields of the command clip, with the needles as "events". Each question also has "needle", the
name it is about. "loop_s" is the length of the loop in seconds.
"""

import argparse
import functools
import pathlib

import numpy as np
from rich.console import Console

from experiments.synthetic import files, film_video, films, pictures
from experiments.synthetic.commands import arguments, clip
from vxl2_jax.errors import RequestError


def add_flags(parser: argparse.ArgumentParser) -> None:
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--hours", type=_hours, dest="seconds", metavar="H", help="length of the film, up to 24")
    length.add_argument("--seconds", type=arguments.integer(1, 86400), metavar="S", help="the same in seconds")
    arguments.add_count(parser, "--needles", 10, "number of needles", len(pictures.load()[0]))
    parser.add_argument(
        "--loop",
        type=pathlib.Path,
        nargs="+",
        default=[],
        metavar="F.mp4",
        help="videos to repeat one after the other, resized to a square (default: generated backgrounds)",
    )
    arguments.add_video(parser, rate=8)
    arguments.add_files(parser)


def run(flags: argparse.Namespace) -> str:
    arguments.check_files(flags.out, flags.answers, flags.loop)
    if flags.seconds < (least := films.least_seconds(flags.needles)):
        raise RequestError(f"{flags.needles} needles need a film of at least {least} seconds, not {flags.seconds}")
    rng = np.random.default_rng(flags.seed)
    film = films.draw_film(rng, seconds=flags.seconds, needles=flags.needles)
    asked = films.film_questions(rng, film)
    if flags.loop:
        loop = functools.partial(film_video.from_files, flags.loop, flags.size, flags.rate)
    else:
        loop = functools.partial(film_video.generated, flags.seed, flags.size, flags.rate)
    with Console(stderr=True).status(f"encoding {flags.seconds} seconds"):
        loop_s = film_video.write_mp4(film, loop, flags.out, size=flags.size, rate=flags.rate)
    content = clip.answers(film.clip(), [question for _, question in asked])
    for fields, (name, _) in zip(content["questions"], asked, strict=True):
        fields["needle"] = name
    files.write(flags.answers, files.as_json({**content, "loop_s": loop_s}))
    return clip.summary(flags, asked[0][1])


def _hours(text: str) -> int:
    """Hours in whole seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 24:
        raise argparse.ArgumentTypeError(f"{text} is not a number of hours up to 24")
    return round(3600 * value)
