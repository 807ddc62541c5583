"""How many questions nano answers rightly, on freshly rendered videos, through the reader.

    python experiments/evaluate_nano.py --questions 400 --seed 7 --json

Every clip is rendered to an mp4 as `make_clip.py` does, read back, watched twice (dense and chunked
pre-fill) and asked in four modes:

    dense           dense pre-fill, the whole cache dense
    chunked         chunk-based pre-fill, the whole cache dense
    bilevel         chunk-based pre-fill; first, last and the top-k chunks by attention dense, the rest pooled
    bilevel_random  the same with as many chunks chosen by lot

Accuracies are in percent; cache_ratio is the summed key/value bytes loaded over the summed bytes of the
dense memories. `chance` is what the best guess without the video gets right.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from nano import clips, pictures
from nano.encode import render_mp4
from nano.questions import TYPES, chance, is_right, questions
from rich.console import Console
from rich.progress import track

import vxl2_jax as vxl2

_QUESTIONS = flags.DEFINE_integer("questions", 400, "Questions in all.", lower_bound=1)
_PER_CLIP = flags.DEFINE_integer("per_clip", 8, "Questions asked of each clip.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 7, "Seed of clips, questions and lots; training uses none of these streams.")
_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory of the same vocabulary.")
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 4, "Groups per pre-fill block in the chunked and bi-level modes.")
_PREV_BLOCKS = flags.DEFINE_integer("prev_blocks", 3, "Earlier blocks a block sees whole.")
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 2, "Groups per bi-level chunk.")
_TOP_K = flags.DEFINE_integer("top_k", 2, "Interior chunks loaded dense.")
_COMPRESSION = flags.DEFINE_integer("compression", 4, "Visual tokens pooled into one in sparse chunks.")
_SHORTEST = flags.DEFINE_integer("shortest", 32, "Shortest clip in seconds (frames at 1 fps).")
_LONGEST = flags.DEFINE_integer("longest", 64, "Longest clip in seconds.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object alone on standard output.")

MODES = ("dense", "chunked", "bilevel", "bilevel_random")


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a rate, in percent."""
    z, rate = 1.96, right / total
    middle, spread = rate + z * z / (2 * total), z * np.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    return tuple(round(100 * float((middle + side * spread) / (1 + z * z / total)), 1) for side in (-1, 1))


def ask_all(model: vxl2.Model, video: Path, asked: list, seed: int) -> dict[str, list[vxl2.Answer]]:
    """Answers of every mode to the questions about one video file."""
    texts = [question.question for question in asked]
    dense = model.watch(video, prev_blocks=None, compression=_COMPRESSION.value)
    chunked = model.watch(
        video, block_size=_BLOCK_SIZE.value, prev_blocks=_PREV_BLOCKS.value, compression=_COMPRESSION.value
    )
    options = {"chunk_size": _CHUNK_SIZE.value, "max_new_tokens": 8}
    bilevel = {"top_k": _TOP_K.value, **options}
    return {
        "dense": model.ask(dense, texts, top_k=None, relevance="recent", **options),
        "chunked": model.ask(chunked, texts, top_k=None, relevance="recent", **options),
        "bilevel": model.ask(chunked, texts, **bilevel),
        "bilevel_random": [
            model.ask(chunked, text, relevance="random", seed=seed + i, **bilevel) for i, text in enumerate(texts)
        ],
    }


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    rng = np.random.default_rng([_SEED.value, 20261121])
    names, _ = pictures.load()
    model = vxl2.load(_MODEL.value)
    rows: list[tuple[str, str, bool, int, int]] = []
    count = -(-_QUESTIONS.value // _PER_CLIP.value)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in track(range(count), "evaluating clips", console=console, transient=True):
            clip = clips.draw_clip(rng, seconds=int(rng.integers(_SHORTEST.value, _LONGEST.value + 1)), names=names)
            left = min(_PER_CLIP.value, _QUESTIONS.value - number * _PER_CLIP.value)
            asked = questions(rng, clip, left)
            video = Path(folder) / "clip.mp4"
            render_mp4(clip, video)
            for mode, answers in ask_all(model, video, asked, seed=int(rng.integers(2**31))).items():
                rows += [
                    (mode, question.type, is_right(question, answer.text), answer.cache_tokens, answer.cache_tokens_dense)
                    for question, answer in zip(asked, answers, strict=True)
                ]
    report = {mode: summary([row for row in rows if row[0] == mode]) for mode in MODES}
    if _JSON.value:
        print(json.dumps(report, indent=1))
    else:
        for mode, part in report.items():
            types = "  ".join(f"{kind} {v['accuracy']:.1f} (chance {v['chance']:.0f})" for kind, v in part["by_type"].items())
            print(f"{mode:15s} {part['accuracy']:5.1f} %  {part['interval']}  cache {part['cache_ratio']:.3f}  {types}")
    return 0


def summary(rows: list[tuple]) -> dict:
    """Accuracy, interval, cache ratio and accuracy by type of one mode's rows."""
    share = lambda part: round(100 * sum(row[2] for row in part) / len(part), 2)
    by_type = {
        kind: {"accuracy": share(part), "chance": round(100 * chance(kind), 1), "questions": len(part)}
        for kind in TYPES if (part := [row for row in rows if row[1] == kind])
    }
    return {
        "accuracy": share(rows), "interval": wilson(sum(row[2] for row in rows), len(rows)), "questions": len(rows),
        "cache_ratio": round(sum(row[3] for row in rows) / sum(row[4] for row in rows), 4), "by_type": by_type,
    }


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"evaluate_nano: {error}")
