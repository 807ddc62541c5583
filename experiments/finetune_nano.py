"""Teach nano, from 50 examples, questions in words and answers in a form that it was never trained on.

    python -m experiments.finetune_nano --json

Clips are rendered, 50 examples about half of them are written as JSONL, and the language half is fine-tuned by low-rank
updates through the code of `vxl2 train`. Four in five are new:

    "What is on the screen 23 seconds into the video?"   "it is a dog"
    "At 23 seconds, is it the dog or the car?"           "it is the dog"

The others are usual questions with their usual answers. Without them nano unlearns "no", which is what it first answers
to anything unknown.

Told, before and after: how many of those 50 are answered so, new ones to the word; how many fresh ones about the other
clips; and how many of nano's usual questions about those are right. Everything is asked through `watch` and `ask`,
chunked pre-fill, whole cache dense. `training_cpu_s` counts all cores, and nothing else that ran on them.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.progress import track

import vxl2_jax as vxl2
from experiments.synthetic import clips, pictures, questions
from experiments.synthetic.encode import render_mp4
from vxl2_jax.training.loop import train
from vxl2_jax.training.settings import parse

_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory of the same kind.")
_SEED = flags.DEFINE_integer("seed", 50, "Seed of clips, questions, order and low-rank updates.", lower_bound=0)
_EXAMPLES = flags.DEFINE_integer("examples", 50, "Examples to learn from, two about each clip.", lower_bound=10)
_EPOCHS = flags.DEFINE_integer("epochs", 15, "How often each is seen.", lower_bound=1)
_SECONDS = flags.DEFINE_integer(
    "seconds", 40, "Length of all clips: one, so that one program is compiled.", lower_bound=8
)
_FOLDER = flags.DEFINE_string("folder", None, "Where clips, examples and the run stay; unset: nowhere.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object alone on standard output.")

_USUAL = ("exists", "first", "when", "what")
_SETTINGS = """
model = "{model}"
out = "{folder}/run"
seed = {seed}
batch = 10
log_every = 5

[data]
files = ["{folder}/train.jsonl"]

[lora]
rank = 8
alpha = 16.0

[[stages]]
name = "language"
train = ["language"]
learning_rate = 2e-3
epochs = {epochs}
warmup = 5

[checkpoint]
every = 1000
"""


class Pair(NamedTuple):
    """A clip's number, what is asked about it, and the answer; usual: the question behind it, if it is a usual one."""

    clip: int
    question: str
    answer: str
    usual: questions.Question | None = None


def new_pairs(rng: np.random.Generator, number: int, clip: clips.Clip, names: Sequence[str]) -> list[Pair]:
    """Two new-style questions about a clip, one of each kind."""
    pairs = []
    for either in (False, True):
        event = clip.events[int(rng.integers(len(clip.events)))]
        second = int(rng.integers(int(np.ceil(event.start_s + 1)), int(np.floor(event.stop_s - 1)) + 1))
        if either:
            other = str(rng.choice([name for name in names if name != event.name]))
            one, another = rng.permutation([event.name, other])
            text = f"At {second} seconds, is it the {one} or the {another}?"
            pairs.append(Pair(number, text, f"it is the {event.name}"))
        else:
            text = f"What is on the screen {second} seconds into the video?"
            pairs.append(Pair(number, text, f"it is {questions.article(event.name)} {event.name}"))
    return pairs


def usual_pairs(
    rng: np.random.Generator, number: int, clip: clips.Clip, names: Sequence[str], types: Sequence[str]
) -> list[Pair]:
    """Usual questions about a clip, one of each type, about pictures that the model knows."""
    asked = questions.questions(rng, clip, len(types), types, first=0)
    known = [question for question in asked if _pictures_in(question) <= set(names)]
    return [Pair(number, question.question, question.answer, question) for question in known]


def is_right(pair: Pair, said: str) -> bool:
    """Whether an answer is right: a usual one by the usual rule, a new one if it has the same words."""

    def words(text):
        return re.findall(r"[a-z0-9]+", text.lower())

    return words(said) == words(pair.answer) if pair.usual is None else questions.is_right(pair.usual, said)


def shares(model: vxl2.Model, folder: Path, sets: dict[str, list[Pair]]) -> dict[str, float]:
    """Percent right of each set of questions; every clip is watched once."""
    marks: dict[str, list[bool]] = {name: [] for name in sets}
    numbers = sorted({pair.clip for pairs in sets.values() for pair in pairs})
    for number in track(numbers, "asking", console=Console(stderr=True), transient=True):
        memory = model.watch(folder / f"{number}.mp4")
        here = [(name, pair) for name, pairs in sets.items() for pair in pairs if pair.clip == number]
        texts = [pair.question for _, pair in here]
        answers = model.ask(memory, texts, top_k=None, relevance="recent", max_new_tokens=8)
        for (name, pair), answer in zip(here, answers, strict=True):
            marks[name].append(is_right(pair, answer.text))
    return {name: round(100 * float(np.mean(found)), 1) for name, found in marks.items()}


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    if _FOLDER.value:
        Path(_FOLDER.value).mkdir(parents=True, exist_ok=True)
        return run(Path(_FOLDER.value).absolute())
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder))


def run(folder: Path) -> int:
    """Render, ask, train, ask again, tell."""
    rng = np.random.default_rng([_SEED.value, 20261122])
    model = vxl2.load(_MODEL.value)
    unknown = model.tokenizer.encode("<unk>")[0]
    names = [name for name in pictures.load()[0] if unknown not in model.tokenizer.encode(name)]
    half = -(-_EXAMPLES.value // 2)
    sets: dict[str, list[Pair]] = {"trained, new": [], "trained, usual": [], "fresh, new": [], "fresh, usual": []}
    for number in track(range(2 * half), "rendering clips", console=Console(stderr=True), transient=True):
        clip = clips.draw_clip(rng, seconds=_SECONDS.value, names=names)
        render_mp4(clip, folder / f"{number}.mp4", rate=2)
        if number >= half:
            sets["fresh, new"] += new_pairs(rng, number, clip, names)
            sets["fresh, usual"] += usual_pairs(rng, number, clip, names, _USUAL)
        elif number % 5 < 4:
            sets["trained, new"] += new_pairs(rng, number, clip, names)
        else:
            # "exists" each time: half of its answers are "no".
            sets["trained, usual"] += usual_pairs(rng, number, clip, names, ("exists", _USUAL[1 + number // 5 % 3]))
    learnt = sets["trained, new"] + sets["trained, usual"]
    rows = [{"video": f"{pair.clip}.mp4", "question": pair.question, "answer": pair.answer} for pair in learnt]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = shares(model, folder, sets)
    settings = parse(_SETTINGS.format(model=_MODEL.value, folder=folder, seed=_SEED.value, epochs=_EPOCHS.value))
    wall, cores = time.perf_counter(), time.process_time()
    tuned = train(settings)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    after = shares(vxl2.load(tuned), folder, sets)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = {name: len(found) for name, found in sets.items()}
    report = {
        "questions": counts,
        "before": before,
        "after": after,
        "training_s": round(wall, 1),
        "training_cpu_s": round(cores, 1),
        "steps": lines[-1]["step"],
        "loss": [round(line["loss"], 4) for line in (lines[0], lines[-1])],
    }
    if _JSON.value:
        print(json.dumps(report, indent=1))
        return 0
    for name, count in counts.items():
        print(f"{name:14s} {count:4d} questions   before {before[name]:5.1f} %   after {after[name]:5.1f} %")
    print(f"{report['steps']} steps in {wall:.0f} s, loss {report['loss'][0]} → {report['loss'][1]}")
    return 0


def _pictures_in(question: questions.Question) -> set[str]:
    """The pictures that a question and its answer name."""
    return set(re.findall(r"[a-z]+", f"{question.question} {question.answer}".lower())) & set(pictures.load()[0])


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"finetune_nano: {error}")
