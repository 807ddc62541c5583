"""Make a small temporal-grounding benchmark of generated clips, with the annotation files of a published one.

The folder has videos/ and two annotation files with the published names: of the videos, and of a training split without
videos, from which `experiments.studies grounding` takes typical lengths. A run that was interrupted resumes with the same command.

    python -m experiments.synthetic grounding --form charades_sta --clips 20 --out runs/sta
    python -m experiments.synthetic grounding --form qvhighlights --clips 20 --seconds 128 160 --out runs/qvh
"""

import argparse
import shlex
from collections.abc import Iterator

import numpy as np

from experiments.synthetic import clips, dataset, grounding_rows, pictures
from experiments.synthetic.commands import arguments

TRAINING = 4  # clips of the training split for each of the test split


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--form", choices=list(grounding_rows.FILES), required=True, help="whose annotations")
    arguments.add_folder(parser)
    arguments.add_count(parser, "--clips", 20, "number of clips")
    arguments.add_lengths(parser)
    arguments.add_footage(parser, default="test")
    arguments.add_video(parser, rate=4)


def draw(flags: argparse.Namespace) -> dataset.Dataset:
    """The clips and their annotations."""
    rng = np.random.default_rng(flags.seed)

    def split(name: str, count: int) -> Iterator[tuple[str, clips.Clip]]:
        for number in range(count):
            length = clips.draw_seconds(rng, flags.seconds)
            clip = clips.draw_clip(rng, seconds=length, names=pictures.load()[0], footage=flags.footage)
            yield grounding_rows.video_name(flags.form, f"{name}{number:03d}", clip), clip

    splits = dict(split("clip", flags.clips)), dict(split("train", TRAINING * flags.clips))
    texts = [grounding_rows.annotations(flags.form, drawn) for drawn in splits]
    return dataset.Dataset(splits[0], dict(zip(grounding_rows.FILES[flags.form], texts, strict=True)))


def run(flags: argparse.Namespace) -> str:
    drawn = draw(flags)
    dataset.write(drawn, flags)
    test, train = (flags.out / name for name in drawn.annotations)
    command = ["python", "-m", "experiments.studies", "grounding", "--form", flags.form, "--annotations", test]
    command += ["--train", train, "--videos", flags.out / "videos", "--template", "When does {subject} first appear?"]
    command += ["--said_s", 10, "--mode", "bilevel", "--out", f"{flags.out}-bilevel"]
    return f"{drawn.summary(flags.out)}\nNext: {shlex.join(map(str, command))}"
