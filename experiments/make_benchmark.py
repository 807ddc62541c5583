"""Makes a small benchmark in the form of a published one, of generated clips such as nano knows: annotations and videos.

    python -m experiments.make_benchmark --benchmark mlvu --out runs/mini-mlvu
    vxl2 eval --benchmark mlvu --data runs/mini-mlvu --mode bilevel --out runs/mini-mlvu-bilevel

It is there to try `vxl2 eval` end to end where the real videos are not. Wrong options are answers to other questions of the
same type. nano was not trained to name an option's letter, so that its scores here mean nothing.

--form task: the rows of the lmms-eval task, in annotations.json, .jsonl or .parquet (--format; parquet needs the package
pyarrow). --form published: those of the benchmark's own files, where these differ. Video-MME gets subtitles, too, which
name what is on screen.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.synthetic import clips, encode, pictures
from experiments.synthetic.questions import questions
from vxl2_jax.errors import RequestError, Vxl2Error
from vxl2_jax.evaluation.rows import letter, lettered

MOST_OPTIONS = 4
_TRIES = 40


@dataclass(frozen=True)
class Asked:
    """A question about clip `video`, its options, which of them is right, and the seconds its evidence lies in."""

    video: str
    seconds: float
    number: int
    type: str
    question: str
    options: tuple[str, ...]
    right: int
    seen: tuple[float, float]


def ask(rng: np.random.Generator, video: str, clip: clips.Clip, count: int) -> list[Asked]:
    """Questions about a clip; fewer than `count` where there are only such without a wrong answer."""
    names, found = pictures.load()[0], []
    for number, one in enumerate(questions(rng, clip, count)):
        pair = re.search(r"the (\w+) or the (\w+)\?", one.question)
        wrong = {f"the {name}" for name in pair.groups()} if pair else set()
        for _ in range(_TRIES):
            if pair or len(wrong - {one.answer}) >= MOST_OPTIONS - 1:
                break
            other = clips.draw_clip(rng, seconds=round(clip.seconds), names=names)
            wrong |= {q.answer for q in questions(rng, other, 1, types=(one.type,)) if q.type == one.type}
        given = [one.answer, *rng.permutation(sorted(wrong - {one.answer})).tolist()[: MOST_OPTIONS - 1]]
        order = rng.permutation(len(given))
        seen = [second for span in one.evidence for second in span] or [0.0, clip.seconds]
        if len(given) > 1:
            found.append(
                Asked(
                    video,
                    clip.seconds,
                    number,
                    one.type,
                    one.question,
                    tuple(given[i] for i in order),
                    int(np.argmin(order)),
                    (min(seen), max(seen)),
                )
            )
    return found


def bracketed(options: Sequence[str]) -> list[str]:
    """Options as `(A) text`."""
    return [f"({letter(i)}) {option}" for i, option in enumerate(options)]


def clock(seconds: float) -> str:
    """mm:ss."""
    return "{:02d}:{:02d}".format(*divmod(int(seconds), 60))


def mlvu(asked: Asked) -> dict[str, Any]:
    return {
        "video_name": f"{asked.video}.mp4",
        "duration": asked.seconds,
        "task_type": asked.type,
        "question": "\n".join([asked.question, *bracketed(asked.options)]),
        "answer": letter(asked.right),
    }


def mlvu_published(asked: Asked) -> dict[str, Any]:
    return {
        "video": f"{asked.video}.mp4",
        "duration": asked.seconds,
        "question": asked.question,
        "candidates": list(asked.options),
        "answer": asked.options[asked.right],
        "question_type": asked.type,
    }


def video_mme(asked: Asked) -> dict[str, Any]:
    return {
        "videoID": asked.video,
        "question_id": f"{asked.video}-{asked.number}",
        "domain": "Generated",
        "duration": "short" if asked.seconds < 48 else "medium",
        "sub_category": "Pictures",
        "task_type": asked.type,
        "question": asked.question,
        "options": lettered(asked.options).split("\n"),
        "answer": letter(asked.right),
    }


def longvideobench(asked: Asked) -> dict[str, Any]:
    given = (*asked.options, *("N/A",) * (5 - len(asked.options)))
    return {**_longvideobench(asked), **{f"option{i}": option for i, option in enumerate(given)}}


def longvideobench_published(asked: Asked) -> dict[str, Any]:
    return {**_longvideobench(asked), "candidates": list(asked.options)}


def _longvideobench(asked: Asked) -> dict[str, Any]:
    return {
        "id": f"{asked.video}_{asked.number}",
        "video_path": f"{asked.video}.mp4",
        "duration": asked.seconds,
        "duration_group": 60 if asked.seconds < 60 else 600,
        "question_category": asked.type,
        "question": asked.question,
        "correct_choice": asked.right,
    }


def lvbench(asked: Asked) -> dict[str, Any]:
    given = bracketed(asked.options)
    return {
        "video": asked.video,
        "type": "generated",
        "question": asked.question,
        "candidates": given,
        "answer": given[asked.right],
        "question_type": [asked.type],
        "time_reference": "-".join(map(clock, asked.seen)),
    }


def lvbench_published(asked: Sequence[Asked]) -> dict[str, Any]:
    """All questions about a video."""
    qa = [
        {
            "uid": str(one.number),
            "question": "\n".join([one.question, *bracketed(one.options)]),
            "answer": letter(one.right),
            "question_type": [one.type],
            "time_reference": "-".join(map(clock, one.seen)),
        }
        for one in asked
    ]
    return {"key": asked[0].video, "type": "generated", "qa": qa}


_TASK: dict[str, Callable[[Asked], dict]] = {
    "mlvu": mlvu,
    "video_mme": video_mme,
    "longvideobench": longvideobench,
    "lvbench": lvbench,
}


def annotations(name: str, form: str, ending: str, asked: list[list[Asked]]) -> tuple[str, list[dict]]:
    """(name of the annotation file, its rows) for the questions about each video. Video-MME has but the form "task"."""
    if form == "task":
        return f"annotations.{ending}", [_TASK[name](one) for each in asked for one in each]
    if name == "lvbench":
        return "video_info.meta.jsonl", [lvbench_published(each) for each in asked]
    if name == "mlvu":
        return "json/1_generated.json", [mlvu_published(one) for each in asked for one in each]
    return "lvb_val.json", [longvideobench_published(one) for each in asked for one in each]


def subtitles(clip: clips.Clip) -> str:
    """What is on screen, as an SRT file of Video-MME says things."""

    def stamp(second):
        return f"00:{clock(second)},{round(1000 * (second % 1)):03d}"

    return "".join(
        f'{i}\n{stamp(event.start_s)} --> {stamp(event.stop_s)}\n<font color="white" size=".72c">{event.name}</font>\n\n'
        for i, event in enumerate(clip.events, 1)
    )


def write(path: Path, rows: list[dict]) -> None:
    """An annotation file, by its ending. Raises RequestError for parquet without pyarrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise RequestError("--format parquet needs the package pyarrow; pip install pyarrow") from error
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1) + "\n")


def make(
    name: str,
    out: Path,
    *,
    videos: int,
    count: int,
    seconds: tuple[int, int],
    seed: int = 0,
    form: str = "task",
    ending: str = "json",
    size: int = 196,
    rate: int = 4,
) -> None:
    """The whole folder. Raises RequestError if it is there already, or for a form that there is not."""
    if out.exists():
        raise RequestError(f"{out}: is there already; choose another --out")
    if form == "published" and name == "video_mme":
        raise RequestError(
            f"--form published: {name} is published as the rows of the task; use --form task --format parquet"
        )
    rng, asked = np.random.default_rng(seed), []
    (out / "videos").mkdir(parents=True)
    for number in range(videos):
        length = int(rng.integers(seconds[0], seconds[1] + 1))
        clip, video = clips.draw_clip(rng, seconds=length, names=pictures.load()[0]), f"clip_{number:03d}"
        asked.append(ask(rng, video, clip, count))
        encode.render_mp4(clip, out / "videos" / f"{video}.mp4", size, rate)
        if name == "video_mme":
            spoken = out / "subtitle" / f"{video}.srt"
            spoken.parent.mkdir(exist_ok=True)
            spoken.write_text(subtitles(clip))
    file, rows = annotations(name, form, ending, asked)
    write(out / file, rows)


def _flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make_benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(name: str, default: int, told: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{told} (default: {default})")

    parser.add_argument("--benchmark", choices=list(_TASK), required=True, help="which one's form")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to make; it must not be there"
    )
    number("--videos", 6, "how many clips")
    number("--questions", 4, "questions about each")
    parser.add_argument(
        "--seconds",
        type=int,
        nargs=2,
        default=(32, 64),
        metavar=("A", "B"),
        help="shortest and longest clip (default: 32 64)",
    )
    number("--seed", 0, "of clips and questions")
    parser.add_argument("--form", choices=("task", "published"), default="task", help="whose rows (default: task)")
    parser.add_argument(
        "--format",
        choices=("json", "jsonl", "parquet"),
        default="json",
        help="of the file, with --form task (default: json)",
    )
    number("--size", 196, "side of the frames in pixels, even")
    number("--rate", 4, "frames per second")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    flags = _flags(arguments)
    try:
        if not 16 <= flags.seconds[0] <= flags.seconds[1] <= 1000:
            raise RequestError(f"--seconds: {flags.seconds[0]} {flags.seconds[1]} is no range within 16 to 1000")
        if min(flags.videos, flags.questions, flags.rate) < 1 or flags.size < 16 or flags.size % 2:
            raise RequestError("--videos, --questions and --rate are at least 1, and --size is even and at least 16")
        make(
            flags.benchmark,
            flags.out,
            videos=flags.videos,
            count=flags.questions,
            seconds=tuple(flags.seconds),
            seed=flags.seed,
            form=flags.form,
            ending=flags.format,
            size=flags.size,
            rate=flags.rate,
        )
    except Vxl2Error as error:
        print(f"make_benchmark: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
