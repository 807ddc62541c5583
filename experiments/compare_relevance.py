"""Which relevance finds what a question is about, and what that is worth: scorers compared on fresh clips.

    python -m experiments.compare_relevance --out results/relevance

Clips that show pictures over real video which training has not seen are watched once, chunk by chunk, and asked
questions whose evidence is known: the events that the answer rests on. Every scorer ranks the chunks; first and last
are dense anyway, of the others the best k are loaded dense and the rest pooled. At the same k all scorers load the
same bytes. Frames are rendered and watched directly, without a video file.

    recall@k      of the events that lie wholly in chunks that have to be chosen, those with a chunk among the best k
    complete@k    of the questions whose evidence lies wholly in such chunks, those with all their events found
    accuracy@k    of all questions, and of those same ones ("inside"), the answers that are right; "dense" loads everything

Scorers: those of vxl2_jax.relevance (attention and mass look inside the model; uniform, random and recent know nothing
of the question; random draws anew for every question), and "evidence", which knows where the events are: what perfect
relevance would reach. Intervals are 95 % (Wilson) and take events and questions for independent of each other.
`against` compares the first scorer with each other one over the same questions: paired difference, McNemar's exact test.

--out receives NAME.json, NAME.png and NAME.txt; the text is printed, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.progress import track

import vxl2_jax as vxl2
from experiments.studies.recall import DENSE, EVIDENCE, LOT, Judged, as_text, draw, judge, known, report_of
from experiments.synthetic import clips, pictures
from experiments.synthetic.questions import GROUP_S, Question, chunks_of, questions
from vxl2_jax import plot, relevance

_OUT = flags.DEFINE_string("out", None, "Where the results go, without an ending.", required=True)
_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory of the same vocabulary.")
_CLIPS = flags.DEFINE_integer("clips", 16, "How many clips.", lower_bound=1)
_PER_CLIP = flags.DEFINE_integer("per_clip", 14, "Questions asked of each clip.", lower_bound=1)
_SHORTEST = flags.DEFINE_integer("shortest", 128, "Seconds of the shortest clip.", lower_bound=32)
_LONGEST = flags.DEFINE_integer("longest", 256, "Seconds of the longest clip.", upper_bound=1024)
_TOP = flags.DEFINE_list("top", ["1", "2", "4", "8", "16"], "k for which recall is told.")
_ANSWERED = flags.DEFINE_list("answered", ["4", "8"], "k for which questions are answered, too.")
_SCORERS = flags.DEFINE_list("scorers", [*relevance.SCORERS, "evidence"], "Which scorers; the first is compared.")
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 1, "Groups (of four frames) per chunk.", lower_bound=1)
_COMPRESSION = flags.DEFINE_integer("compression", 8, "Visual tokens pooled into one in sparse chunks.", lower_bound=1)
_FOOTAGE = flags.DEFINE_enum("footage", "test", ["", "train", "test"], "Real video behind the pictures.")
_SEED = flags.DEFINE_integer("seed", 17, "Seed of clips, questions and lots.")

MOST_WORDS = 20  # tokens of an answer


def judged(model: vxl2.Model, console: Console) -> Iterator[Judged]:
    """Every question with everything dense, and by every scorer at every k that is answered."""
    rng, names = np.random.default_rng([_SEED.value, 20261122]), pictures.load()[0]
    size, number = _CHUNK_SIZE.value, 0
    for _ in track(range(_CLIPS.value), "clips", console=console, transient=True):
        length = int(rng.integers(_SHORTEST.value, _LONGEST.value + 1))
        clip = clips.draw_clip(rng, seconds=length, names=names, footage=_FOOTAGE.value)
        asked = questions(rng, clip, _PER_CLIP.value)
        frames = clips.render_frames(clip, np.arange(length), model.config.vision.image_size)
        memory = model.watch((frames, np.arange(length, dtype=float)), compression=_COMPRESSION.value)
        lots = int(rng.integers(2**31))
        ways = [(DENSE, None), *((scorer, top_k) for scorer in _SCORERS.value for top_k in numbers(_ANSWERED))]
        for scorer, top_k in ways:
            answers = model.ask(
                memory,
                [question.question for question in asked],
                top_k=top_k,
                chunk_size=size,
                relevance=relevance_of(scorer, asked, memory.layout.chunks(size), lots),
                max_new_tokens=MOST_WORDS,
            )
            for i, (question, answer) in enumerate(zip(asked, answers, strict=True)):
                yield judge(scorer, top_k, number + i, question, answer, size)
        number += len(asked)


def relevance_of(scorer: str, asked: Sequence[Question], chunks: int, seed: int) -> str | Callable:
    """What `Model.ask` is given for a scorer; the two that are no scorers of the package are functions."""
    if scorer == DENSE:
        return "recent"
    if scorer == LOT:
        rng = np.random.default_rng(seed)
        return lambda ids, memory: rng.random(chunks)
    if scorer == EVIDENCE:
        spans = [[chunks_of(span, _CHUNK_SIZE.value, chunks) for span in question.evidence] for question in asked]
        scores = iter([known(events, chunks) for events in spans])
        return lambda ids, memory: next(scores)  # a function is asked for one question after the other, in order
    return scorer


def numbers(flag: flags.FlagHolder) -> list[int]:
    """A list of whole numbers from 1, ascending. Raises RequestError."""
    try:
        found = sorted({int(part) for part in flag.value})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise vxl2.RequestError(f"--{flag.name}: {','.join(flag.value)!r} is no list of numbers from 1, as 4,8")
    return found


def check() -> tuple[list[int], list[int], Path]:
    """(k for recall, k that are answered, the picture's path). Raises RequestError for what the flags have wrong."""
    tops, answered, picture = numbers(_TOP), numbers(_ANSWERED), Path(f"{_OUT.value}.png")
    names = (*relevance.SCORERS, EVIDENCE)
    if unknown := [name for name in _SCORERS.value if name not in names]:
        raise vxl2.RequestError(f"--scorers: {unknown[0]!r} is none; choose of {', '.join(names)}")
    if _SHORTEST.value > _LONGEST.value:
        raise vxl2.RequestError(f"--shortest {_SHORTEST.value} is more than --longest {_LONGEST.value}")
    plot.check_path(picture)
    return tops, answered, picture


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    tops, answered, picture = check()
    model, began = vxl2.load(_MODEL.value), time.perf_counter()
    rows = list(judged(model, Console(stderr=True)))
    report = report_of(rows, tops, answered)
    settings = {
        "model": model.name,
        "model_hash": model.fingerprint,
        "clips": _CLIPS.value,
        "questions": rows[-1].number + 1,
        "seconds": [_SHORTEST.value, _LONGEST.value],
        "chunk_size": _CHUNK_SIZE.value,
        "compression": _COMPRESSION.value,
        "footage": _FOOTAGE.value,
        "seed": _SEED.value,
    }
    data = {"settings": settings, **report, "took_s": round(time.perf_counter() - began, 1)}
    text = as_text(report)
    picture.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    picture.with_suffix(".txt").write_text(text + "\n")
    title = (
        f"{settings['questions']} questions about {_CLIPS.value} clips of {_SHORTEST.value} to {_LONGEST.value} s, chunks of "
        f"{GROUP_S * _CHUNK_SIZE.value} s, pooled {_COMPRESSION.value} to one; 95 % intervals"
    )
    draw(picture, report, title)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"compare_relevance: {error}")
