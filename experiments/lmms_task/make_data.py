"""Makes the data of the lmms-eval task nano_clips: clips such as nano knows, questions about them, their answers.

    python -m experiments.lmms_task.make_data
    python -m lmms_eval --model vxl2_jax --model_args pretrained=nano,mode=bilevel,chunk_size=2,top_k=2 \\
        --include_path experiments/lmms_task --tasks nano_clips

lmms-eval comes by itself (it asks for an older PyAV than ours, which does not serve our reader):

    pip install -e .[lmms] && pip install --no-deps lmms-eval==0.7.3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from experiments.synthetic import clips, encode, pictures
from experiments.synthetic.questions import questions


def make(out: Path, *, videos: int, count: int, seed: int = 0) -> None:
    """videos/*.mp4 of 32 to 64 seconds, and questions.jsonl with `count` rows about each."""
    rng = np.random.default_rng(seed)
    (out / "videos").mkdir(parents=True)
    with (out / "questions.jsonl").open("w") as file:
        for number in range(videos):
            clip = clips.draw_clip(rng, seconds=clips.draw_seconds(rng), names=pictures.load()[0])
            path = (out / "videos" / f"clip_{number:03d}.mp4").resolve()
            encode.render_mp4(clip, path, 196, 8)
            for question in questions(rng, clip, count):
                file.write(json.dumps({"video": str(path), **dataclasses.asdict(question)}) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/nano_clips"),
        metavar="DIR",
        help="the folder to make; it must not be there (default: runs/nano_clips, where nano_clips.yaml looks)",
    )
    for name, default, told in (("videos", 6, "how many clips"), ("questions", 8, "about each"), ("seed", 0, "of all")):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{told} (default: {default})")
    flags = parser.parse_args(arguments)
    if flags.out.exists() or min(flags.videos, flags.questions) < 1 or flags.seed < 0:
        wrong = (
            f"{flags.out}: is there already; remove it, or choose another --out"
            if flags.out.exists()
            else ("--videos and --questions are at least 1, and --seed at least 0")
        )
        print(f"make_data: {wrong}", file=sys.stderr)
        return 2
    make(flags.out, videos=flags.videos, count=flags.questions, seed=flags.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
