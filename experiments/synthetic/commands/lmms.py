"""Make the data of the lmms-eval task nano_clips: clips of 32 to 64 seconds, questions and answers.

A run that was interrupted resumes with the same command. lmms-eval requires an older PyAV than the reader here
supports, so install it without its dependencies:

    pip install -e .[lmms] && pip install --no-deps lmms-eval==0.7.3
    python -m experiments.synthetic lmms
    python -m lmms_eval --model vxl2_jax --model_args pretrained=nano,mode=bilevel,chunk_size=2,top_k=2 \\
        --include_path experiments/lmms_task --tasks nano_clips
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from experiments.synthetic import clips, dataset, files, pictures
from experiments.synthetic.commands import arguments
from experiments.synthetic.questions import questions

FOLDER = pathlib.Path("runs/nano_clips")  # where nano_clips.yaml looks for the questions


def add_flags(parser: argparse.ArgumentParser) -> None:
    arguments.add_folder(parser, default=FOLDER)
    arguments.add_count(parser, "--videos", 6, "number of clips")
    arguments.add_count(parser, "--questions", 8, "number of questions about each clip")
    arguments.add_video(parser, rate=8)


def draw(flags: argparse.Namespace) -> dataset.Dataset:
    """The clips and their questions, with absolute paths of the videos."""
    rng, drawn, rows = np.random.default_rng(flags.seed), {}, []
    for number in range(flags.videos):
        video = f"clip_{number:03d}"
        drawn[video] = clips.draw_clip(rng, seconds=clips.draw_seconds(rng), names=pictures.load()[0])
        path = str((flags.out / "videos" / f"{video}.mp4").resolve())
        rows += [
            {"video": path, **dataclasses.asdict(question)}
            for question in questions(rng, drawn[video], flags.questions)
        ]
    return dataset.Dataset(drawn, {"questions.jsonl": files.as_jsonl(rows)})


def run(flags: argparse.Namespace) -> str:
    drawn = draw(flags)
    dataset.write(drawn, flags)
    command = (
        "python -m lmms_eval --model vxl2_jax --model_args pretrained=nano,mode=bilevel,chunk_size=2,top_k=2 "
        "--include_path experiments/lmms_task --tasks nano_clips"
    )
    if flags.out != FOLDER:
        command += f"   # after naming {flags.out} in experiments/lmms_task/nano_clips.yaml"
    return f"{drawn.summary(flags.out)}\nNext: {command}"
