"""Can nano learn, from 50 examples, questions and answers in a form that it was never trained on?

Clips are rendered, 50 examples about half of them are written as JSONL, and the language half is fine-tuned with low-rank
updates by the code of `vxl2 train`. Four in five are new:

    "What is on the screen 23 seconds into the video?"   "it is a dog"
    "At 23 seconds, is it the dog or the car?"           "it is the dog"

The others are usual questions with their usual answers; without them nano unlearns "no", its first answer to anything
unknown.

Reported, before and after: how many of those 50 are answered so, new ones to the word; how many fresh ones about the other
clips; and how many of nano's usual questions about those are correct. Everything is asked through `watch` and `ask`, with
chunked pre-fill and the whole cache dense. `training_cpu_s` is the CPU time on all cores.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vxl2_jax as vxl2
from experiments.studies import runner, statistics
from experiments.studies.study import Result, Study, integer
from experiments.synthetic import clips, pictures, questions
from experiments.synthetic.encode import render_mp4
from vxl2_jax.training.finetune import train
from vxl2_jax.training.settings import parse

_USUAL = ("exists", "first", "when", "what")
_SETS = ("trained, new", "trained, usual", "fresh, new", "fresh, usual")
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
    """A question of one of _SETS with its answer; usual: the usual question behind it, if it is one."""

    set: str
    question: str
    answer: str
    usual: questions.Question | None = None


class Drawn(NamedTuple):
    """A clip, the file it is rendered to, and what is asked about it."""

    clip: clips.Clip
    file: Path
    pairs: list[Pair]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=integer(0), default=50, help="seed of clips, questions, order and updates")
    parser.add_argument("--examples", type=integer(10), default=50, help="examples to learn from, two about each clip")
    parser.add_argument("--epochs", type=integer(1), default=15, help="how often each example is used")
    parser.add_argument("--seconds", type=integer(8), default=40, help="length of all clips: one executable for all")


def run(args: argparse.Namespace) -> Result:
    """Render and ask; train; ask again; report. Clips and the tuned model are kept beside the records."""
    model = vxl2.load(args.model)
    settings = {name: getattr(args, name) for name in ("seed", "examples", "epochs", "seconds")}
    about = {"study": "finetune", "model": model.fingerprint, **settings}
    folder = runner.records_path(args.records, about).with_suffix("").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_clips(model, args, folder)

    def first(one: Drawn) -> runner.Record:
        render_mp4(one.clip, one.file, rate=2)
        return judged(model, one)

    before = runner.run(args.records, about, {f"before/{i}": one for i, one in drawn.items()}, first)
    training = runner.run(args.records, about, {"training": folder}, lambda _: trained(args, drawn, folder))
    tuned = vxl2.load(training["training"].pop("model"))
    after = runner.run(
        args.records, about, {f"after/{i}": one for i, one in drawn.items()}, lambda one: judged(tuned, one)
    )
    return report_of(drawn, list(before.values()), list(after.values()), training["training"])


def draw_clips(model: vxl2.Model, args: argparse.Namespace, folder: Path) -> dict[int, Drawn]:
    """All clips, drawn one after another from one random stream: half of them to learn from, the others fresh."""
    rng, found = np.random.default_rng([args.seed, 20261122]), {}
    unknown = model.tokenizer.encode("<unk>")[0]
    names = [name for name in pictures.load()[0] if unknown not in model.tokenizer.encode(name)]
    half = -(-args.examples // 2)
    for number in range(2 * half):
        clip = clips.draw_clip(rng, seconds=args.seconds, names=names)
        if number >= half:
            pairs = new_pairs(rng, "fresh, new", clip, names) + usual_pairs(rng, "fresh, usual", clip, names, _USUAL)
        elif number % 5 < 4:
            pairs = new_pairs(rng, "trained, new", clip, names)
        else:
            # "exists" each time: half of its answers are "no".
            types = ("exists", _USUAL[1 + number // 5 % 3])
            pairs = usual_pairs(rng, "trained, usual", clip, names, types)
        found[number] = Drawn(clip, folder / f"{number}.mp4", pairs)
    return found


def new_pairs(rng: np.random.Generator, name: str, clip: clips.Clip, names: Sequence[str]) -> list[Pair]:
    """Two questions in the new form about a clip, one of each kind, for the set `name`."""
    pairs = []
    for either in (False, True):
        event = clip.events[int(rng.integers(len(clip.events)))]
        second = int(rng.integers(int(np.ceil(event.start_s + 1)), int(np.floor(event.stop_s - 1)) + 1))
        if either:
            other = str(rng.choice([one for one in names if one != event.name]))
            one, another = rng.permutation([event.name, other])
            text = f"At {second} seconds, is it the {one} or the {another}?"
            pairs.append(Pair(name, text, f"it is the {event.name}"))
        else:
            text = f"What is on the screen {second} seconds into the video?"
            pairs.append(Pair(name, text, f"it is {questions.article(event.name)} {event.name}"))
    return pairs


def usual_pairs(
    rng: np.random.Generator, name: str, clip: clips.Clip, names: Sequence[str], types: Sequence[str]
) -> list[Pair]:
    """Usual questions about a clip, one of each type, about pictures that the model knows."""
    asked = questions.questions(rng, clip, len(types), types, first=0)
    pictured = set(pictures.load()[0]) - set(names)
    known = [one for one in asked if not pictured & set(re.findall(r"[a-z]+", f"{one.question} {one.answer}".lower()))]
    return [Pair(name, one.question, one.answer, one) for one in known]


def is_right(pair: Pair, response: str) -> bool:
    """Whether an answer is correct: a usual one by the usual rule, a new one if it has the same words."""
    if pair.usual is not None:
        return questions.is_right(pair.usual, response)
    words, expected = (re.findall(r"[a-z0-9]+", text.lower()) for text in (response, pair.answer))
    return words == expected


def judged(model: vxl2.Model, drawn: Drawn) -> runner.Record:
    """The record of a clip: whether each question was answered correctly."""
    texts = [pair.question for pair in drawn.pairs]
    answers = (
        model.ask(model.watch(drawn.file), texts, top_k=None, relevance="recent", max_new_tokens=8) if texts else []
    )
    said = [answer.text for answer in answers]
    return {"right": [int(is_right(*pair)) for pair in zip(drawn.pairs, said, strict=True)], "said": said}


def trained(args: argparse.Namespace, drawn: dict[int, Drawn], folder: Path) -> runner.Record:
    """Fine-tune on the examples; the record says how long it took."""
    rows = [
        {"video": one.file.name, "question": pair.question, "answer": pair.answer}
        for kind in ("trained, new", "trained, usual")
        for one in drawn.values()
        for pair in one.pairs
        if pair.set == kind
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = parse(_SETTINGS.format(model=args.model, folder=folder, seed=args.seed, epochs=args.epochs))
    wall, cores = time.perf_counter(), time.process_time()
    tuned = train(settings)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": str(tuned),
        "training_s": round(wall, 1),
        "training_cpu_s": round(cores, 1),
        "steps": lines[-1]["step"],
        "loss": [round(line["loss"], 4) for line in (lines[0], lines[-1])],
    }


def report_of(
    drawn: dict[int, Drawn], before: list[runner.Record], after: list[runner.Record], training: runner.Record
) -> Result:
    """Accuracies by set of questions, before and after."""

    def right(records: list[runner.Record], name: str) -> dict[int, list[int]]:
        return {
            number: [value for pair, value in zip(one.pairs, record["right"], strict=True) if pair.set == name]
            for (number, one), record in zip(drawn.items(), records, strict=True)
        }

    found = {name: (right(before, name), right(after, name)) for name in _SETS}
    rates = {name: [statistics.rate(statistics.flat(each)) for each in both] for name, both in found.items()}
    report: dict[str, Any] = {"questions": {name: old["questions"] for name, (old, _) in rates.items()}}
    report |= {
        when: {name: both[i]["accuracy"] for name, both in rates.items()} for i, when in ((0, "before"), (1, "after"))
    }
    report |= {name: training[name] for name in ("training_s", "training_cpu_s", "steps", "loss")}
    rows = {
        name: {"before": old, "after": new, "points": statistics.change(*found[name]), "asked": old["questions"]}
        for name, (old, new) in rates.items()
    }
    start, end = report["loss"]
    text = f"{report['steps']} steps in {report['training_s']:.0f} s, loss {start} → {end}"
    return Result(report, f"{statistics.table('questions', rows)}\n\n{text}")


STUDY = Study(__doc__, run, add_flags)
