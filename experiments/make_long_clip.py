"""Make one video of hours with a few needles in it, with questions and their answers.

Real clips (or, without --loop, generated backgrounds) are looped; ten times a picture lies over them for 8
to 16 seconds, each another of nano's pictures, at random whole seconds: one in each tenth of the film, none
in its first and last 16 seconds. The same flags make the same film and the same questions.

    python -m experiments.make_long_clip --hours 2.8 --seed 7 --loop a.mp4 b.mp4 --out long.mp4 --answers long.json

The answers file is that of make_clip.py: "questions", "seconds" and "events" (the needles); each question
also has "needle", the name it is about. It adds "loop_s", after how many seconds the background repeats.
"""

import argparse
import json
import os
import pathlib
import sys

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import vxl2_jax as vxl2
from experiments import make_clip
from experiments.synthetic import long_clips, pictures


def _hours(text: str) -> int:
    """Hours → whole seconds."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours") from None
    if not 0 < value <= 24:
        raise argparse.ArgumentTypeError(f"{text} is not a number of hours up to 24")
    return round(3600 * value)


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_clip._Parser(
        prog="make_long_clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = make_clip._whole
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--hours", type=_hours, dest="seconds", metavar="H", help="length of the film, up to 24")
    length.add_argument("--seconds", type=whole(1, 86400), metavar="S", help="the same in seconds")
    parser.add_argument("--needles", type=whole(1, len(pictures.load()[0])), default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=whole(0, 2**62), required=True, help="which needles, where, and the backgrounds")
    parser.add_argument(
        "--loop",
        type=pathlib.Path,
        nargs="+",
        default=[],
        metavar="F.mp4",
        help="videos to loop, one after the other, squashed to a square (default: generated)",
    )
    parser.add_argument(
        "--size",
        type=whole(16, 2048, even=True),
        default=196,
        metavar="PX",
        help="side of the square frame in pixels, even (default: 196)",
    )
    parser.add_argument("--rate", type=whole(1, 60), default=8, metavar="FPS", help="frames per second (default: 8)")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="F.mp4", help="the video to write")
    parser.add_argument(
        "--answers", type=pathlib.Path, required=True, metavar="F.json", help="the questions and answers to write"
    )
    flags = parser.parse_args(arguments)
    for path in (flags.out, flags.answers):
        if not path.parent.is_dir():
            parser.error(f"no folder {path.parent} to write {path.name} into")
        if path.is_dir():
            parser.error(f"{path} is a folder")
    out, answers, sources = flags.out.resolve(), flags.answers.resolve(), {path.resolve() for path in flags.loop}
    if out == answers or {out, answers} & sources:
        parser.error("--out, --answers and the videos of --loop must be different files")
    least = long_clips.least_seconds(flags.needles)
    if flags.seconds < least:
        parser.error(f"{flags.needles} needles need a film of at least {least} seconds, not {flags.seconds}")
    return flags


def main(arguments: list[str] | None = None) -> int:
    flags = _flags(arguments)
    rng = np.random.default_rng(flags.seed)
    film = long_clips.draw_film(rng, seconds=flags.seconds, needles=flags.needles)
    asked = long_clips.film_questions(rng, film)
    loop = long_clips.Loop(tuple(flags.loop), seed=flags.seed)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("s of film")
    try:
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            tasks: dict = {}

            def progress(stage: str, done: int, total: int | None) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done, total=total)

            loop_s = long_clips.write_mp4(film, loop, flags.out, flags.size, flags.rate, progress)
        answers = {
            "questions": [{**make_clip._plain(question), "needle": name} for name, question in asked],
            "seconds": float(film.seconds),
            "events": [{"name": e.name, "start_s": e.start_s, "stop_s": e.stop_s} for e in film.needles],
            "loop_s": loop_s,
        }
        part = flags.answers.with_name(f".{flags.answers.name}.{os.getpid()}.part")
        part.write_text(json.dumps(answers, indent=1) + "\n")
        part.replace(flags.answers)
    except OSError as error:
        print(f"make_long_clip: cannot write: {error}", file=sys.stderr)
        return 1
    except (vxl2.Vxl2Error, ValueError) as error:
        print(f"make_long_clip: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
