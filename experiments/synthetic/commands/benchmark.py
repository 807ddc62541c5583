"""Make a small benchmark of generated clips, with the annotation files of a published one.

It tests `vxl2 eval` end to end without the real videos. nano was not trained to name the letter of an option: its options
are scored by likelihood. Video-MME also gets subtitles, which name what is on screen. A run that was interrupted resumes
with the same command.

    python -m experiments.synthetic benchmark --benchmark mlvu --out runs/mini-mlvu
"""

import argparse
import shlex

import numpy as np

from experiments.synthetic import benchmark_rows, clips, dataset, multiple_choice, pictures
from experiments.synthetic.commands import arguments


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--benchmark", choices=list(benchmark_rows.TASK), required=True, help="whose annotations")
    arguments.add_folder(parser)
    arguments.add_count(parser, "--videos", 6, "number of clips")
    arguments.add_count(parser, "--questions", 4, "number of questions about each clip")
    arguments.add_lengths(parser)
    parser.add_argument(
        "--form",
        choices=("task", "published"),
        default="task",
        help="annotations as the lmms-eval task reads them, or as the benchmark's own files (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=benchmark_rows.FORMATS,
        default="json",
        help="file format with --form task; parquet needs the package pyarrow (default: %(default)s)",
    )
    arguments.add_video(parser, rate=4)


def draw(flags: argparse.Namespace) -> dataset.Dataset:
    """The clips and their annotations."""
    rng, drawn, asked = np.random.default_rng(flags.seed), {}, []
    for number in range(flags.videos):
        video, length = f"clip_{number:03d}", clips.draw_seconds(rng, flags.seconds)
        drawn[video] = clips.draw_clip(rng, seconds=length, names=pictures.load()[0])
        asked.append(multiple_choice.draw(rng, video, drawn[video], flags.questions))
    annotations = benchmark_rows.annotations(flags.benchmark, flags.form, flags.format, asked)
    if flags.benchmark == "video_mme":
        annotations |= {f"subtitle/{video}.srt": benchmark_rows.subtitles(clip) for video, clip in drawn.items()}
    return dataset.Dataset(drawn, annotations)


def run(flags: argparse.Namespace) -> str:
    drawn = draw(flags)
    dataset.write(drawn, flags)
    command = ["vxl2", "eval", "--benchmark", flags.benchmark, "--data", flags.out, "--mode", "bilevel"]
    command += ["--out", f"{flags.out}-bilevel"]
    return f"{drawn.summary(flags.out)}\nNext: {shlex.join(map(str, command))}"
