"""How many questions nano answers rightly, on freshly rendered videos, through the reader.

    python -m experiments.evaluate_nano --questions 400 --seed 7 --json --out seed7.json

So many questions are asked of clips of each range of lengths (--ranges, in seconds; frames at 1 fps), behind which
real video runs that training has not seen. Every clip is rendered to an mp4 as `experiments.synthetic clip` does, read back, watched
twice (dense and chunked pre-fill) and asked in these modes:

    dense             dense pre-fill, the whole cache dense
    chunked           chunk-based pre-fill, the whole cache dense
    bilevel_62        chunk-based pre-fill; first and last chunk dense, of the others as many, by attention, as fit
                      into 62 % of the dense memory's bytes; the rest pooled
    bilevel_62_random the same with as many chunks chosen by lot
    …                 and so on for every share in --shares; bilevel_62_by2: two visual tokens pooled into one, not eight

In clips of 32 seconds a quarter of the bytes and more are ends, prefix and timestamps: a share that is not to be had in
clips of a range's middle length is left out there. In shorter ones more tokens are pooled into one, as many as it takes.

A report that --out already names is completed: ranges that it has are not asked again if its settings are the same.

Accuracies and intervals (95 %, Wilson) are in percent; cache_ratio is the summed key/value bytes loaded over the summed
bytes of the dense memories. `chance` is what the best guess without the video gets right. `inside` counts the questions
whose evidence (the events that the answer rests on) lies in chunks that have to be chosen. `differences` compares modes
over the same questions, in percentage points.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.progress import track

import vxl2_jax as vxl2
from experiments.studies.marks import Judged, difference, inside, summary
from experiments.studies.memories import interior
from experiments.synthetic import clips, pictures
from experiments.synthetic.blind_guesses import chance_levels
from experiments.synthetic.encode import render_mp4
from experiments.synthetic.questions import TYPES, Question, is_right, questions
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.evaluation.report import write_texts

_QUESTIONS = flags.DEFINE_integer("questions", 400, "Questions per range.", lower_bound=1)
_PER_CLIP = flags.DEFINE_integer("per_clip", 14, "Questions asked of each clip.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 7, "Seed of clips, questions and lots; training uses none of these streams.")
_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory of the same vocabulary.")
_RANGES = flags.DEFINE_list("ranges", ["32-64", "128-256"], "Lengths of the clips in seconds, shortest-longest.")
_SHARES = flags.DEFINE_list(
    "shares",
    ["62", "62:2", "35"],
    "Percent of the dense memory's bytes that bi-level modes may load; share:compression for one other than --compression.",
)
_FOOTAGE = flags.DEFINE_enum("footage", "test", ["", "train", "test"], "Real video behind the pictures.")
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 4, "Groups per pre-fill block in the chunked and bi-level modes.")
_PREV_BLOCKS = flags.DEFINE_integer("prev_blocks", 3, "Earlier blocks a block sees whole.")
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 1, "Groups per bi-level chunk.", lower_bound=1)
_COMPRESSION = flags.DEFINE_integer("compression", 8, "Visual tokens pooled into one in sparse chunks.", lower_bound=1)
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object alone on standard output.")
_OUT = flags.DEFINE_string("out", None, "Also write that object into this file, range by range.")

RATE = 4  # frames per second of the rendered files
MOST_WORDS = 20  # tokens of an answer


def ask_all(
    model: vxl2.Model, video: Path, texts: list[str], shares: list[Share], seed: int
) -> dict[str, list[vxl2.Answer]]:
    """Answers of every mode to the questions about one video file."""
    rng = np.random.default_rng(seed)
    dense = model.watch(video, prev_blocks=None)
    chunked = model.watch(video, block_size=_BLOCK_SIZE.value, prev_blocks=_PREV_BLOCKS.value)

    def by_lot(ids, memory):
        return rng.random(memory.layout.chunks(_CHUNK_SIZE.value))

    options = {"chunk_size": _CHUNK_SIZE.value, "max_new_tokens": MOST_WORDS}
    answers = {
        "dense": model.ask(dense, texts, top_k=None, relevance="recent", **options),
        "chunked": model.ask(chunked, texts, top_k=None, relevance="recent", **options),
    }
    for share in shares:
        memory = pooled_to_fit(chunked, share)
        room = interior(memory, share.percent, _CHUNK_SIZE.value)
        answers[share.mode] = model.ask(memory, texts, top_k=room, **options)
        answers[f"{share.mode}_random"] = model.ask(memory, texts, top_k=room, relevance=by_lot, **options)
    return answers


def shares_for(model: vxl2.Model, shares: list[Share], seconds: tuple[int, int]) -> list[Share]:
    """Those that are to be had in a clip of a range's middle length, if all but its ends is pooled."""
    length = sum(seconds) // 2
    frames = np.zeros((length, model.config.vision.image_size, model.config.vision.image_size, 3), np.uint8)
    memory = model.watch((frames, np.arange(length, dtype=float)))
    return [share for share in shares if _fits(pooled_to_fit(memory, share), share.percent)]


def pooled_to_fit(memory: vxl2.VideoMemory, share: Share) -> vxl2.VideoMemory:
    """The memory with a share's compression, or the least above it by which everything but the ends pooled fits.

    Raises RequestError for a compression of more tokens than there are.
    """
    check_compression(share.compression, memory.layout.visual)
    for compression in range(share.compression, memory.layout.visual + 1):
        memory = memory.with_compression(compression)
        if _fits(memory, share.percent):
            break
    return memory


def _fits(memory: vxl2.VideoMemory, percent: int) -> bool:
    least = memory.layout.mixed_length(memory.compression, _CHUNK_SIZE.value, interior=0)
    return 100 * least <= percent * memory.layout.length


class Share(NamedTuple):
    """At most so many percent of the dense memory's bytes; visual tokens pooled into one elsewhere; the mode's name."""

    percent: int
    compression: int
    mode: str


def parse_share(text: str) -> Share:
    """ "62" or "62:2" → Share. Raises RequestError for anything else."""
    percent, colon, by = text.partition(":")
    try:
        share = Share(
            int(percent), int(by) if colon else _COMPRESSION.value, f"bilevel_{percent}" + f"_by{by}" * bool(colon)
        )
    except ValueError:
        raise vxl2.RequestError(
            f"--shares: {text!r} is not of the form percent or percent:compression, as 62:2"
        ) from None
    if share.compression < 2:
        raise vxl2.RequestError(f"--shares: {text!r} pools nothing; name a compression of 2 or more")
    if not 0 < share.percent <= 100:
        raise vxl2.RequestError(f"--shares: {share.percent} does not lie in 1-100 percent")
    return share


def judged(model: vxl2.Model, seconds: tuple[int, int], console: Console) -> Iterator[Judged]:
    """Every answer of every mode about fresh clips of a range of lengths."""
    rng = np.random.default_rng([_SEED.value, *seconds, 20261121])
    names = pictures.load()[0]
    shares = shares_for(model, [parse_share(text) for text in _SHARES.value], seconds)
    count, number = -(-_QUESTIONS.value // _PER_CLIP.value), 0
    with tempfile.TemporaryDirectory() as folder:
        for clip_number in track(range(count), f"{seconds[0]} to {seconds[1]} s", console=console, transient=True):
            length = int(rng.integers(seconds[0], seconds[1] + 1))
            clip = clips.draw_clip(rng, seconds=length, names=names, footage=_FOOTAGE.value)
            asked: list[Question] = questions(rng, clip, min(_PER_CLIP.value, _QUESTIONS.value - number))
            video = Path(folder) / "clip.mp4"
            render_mp4(clip, video, rate=RATE)
            answers = ask_all(model, video, [q.question for q in asked], shares, seed=int(rng.integers(2**31)))
            for mode, said in answers.items():
                for i, (question, answer) in enumerate(zip(asked, said, strict=True)):
                    lies = inside(question, -(-length // model.config.frames_per_group), _CHUNK_SIZE.value)
                    yield Judged(
                        mode,
                        clip_number,
                        number + i,
                        question.type,
                        is_right(question, answer.text),
                        lies,
                        answer.cache_tokens,
                        answer.cache_tokens_dense,
                    )
            number += len(asked)


def report_of(rows: list[Judged], chances: dict[str, float]) -> dict:
    """The marks of one range."""
    modes = list(dict.fromkeys(row.mode for row in rows))
    differences = {}
    for mode in modes:
        if mode.startswith("bilevel") and not mode.endswith("random"):
            differences[f"{mode} - dense"] = difference(rows, mode, "dense")
            differences[f"{mode} - {mode}_random"] = difference(rows, mode, f"{mode}_random")
            differences[f"{mode} - {mode}_random, inside"] = difference(rows, mode, f"{mode}_random", only_inside=True)
    known = {name.split(",")[0]: round(100 * level, 1) for name, level in chances.items() if "known" in name}
    return {
        "modes": {mode: summary([row for row in rows if row.mode == mode], chances) for mode in modes},
        "differences": differences,
        "chance_knowing_the_names": known,
    }


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    ranges = [parse_range(text) for text in _RANGES.value]
    for text in _SHARES.value:
        parse_share(text)
    model, console = vxl2.load(_MODEL.value), Console(stderr=True)
    settings = (
        "seed",
        "questions",
        "per_clip",
        "footage",
        "block_size",
        "prev_blocks",
        "chunk_size",
        "compression",
        "shares",
    )
    about = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "settings": {name: flags.FLAGS[name].value for name in settings},
    }
    found = begun(Path(_OUT.value), about) if _OUT.value else {}
    report = about | {"ranges": found}
    for seconds in ranges:
        name = f"{seconds[0]}-{seconds[1]}"
        if name in found:
            continue
        found[name] = report_of(list(judged(model, seconds, console)), chance_levels(0, 2000, seconds))
        report["ranges"] = found = dict(sorted(found.items(), key=lambda item: parse_range(item[0])))
        if _OUT.value:
            out = Path(_OUT.value)
            write_texts(out.absolute().parent, {out.name: json.dumps(report, indent=1) + "\n"})
    print(json.dumps(report, indent=1) if _JSON.value else as_text(report))
    return 0


def begun(out: Path, about: dict) -> dict:
    """The ranges of a report that is there already. Raises RequestError for one of other settings, or something else."""
    if not out.exists():
        return {}
    try:
        report = json.loads(out.read_text())
        found = report.pop("ranges")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise vxl2.RequestError(f"--out {out}: is no report of this script; choose another name") from error
    if report != about:
        raise vxl2.RequestError(
            f"--out {out}: a report of another model or of other settings; remove it or choose another name"
        )
    return found


def parse_range(text: str) -> tuple[int, int]:
    """ "32-64" → (32, 64). Raises RequestError for anything else, and for lengths outside 32 to 1,024 seconds."""
    try:
        shortest, longest = (int(part) for part in text.split("-"))
    except ValueError:
        raise vxl2.RequestError(f"--ranges: {text!r} is not of the form shortest-longest, as 32-64") from None
    if not 32 <= shortest <= longest <= 1024:
        raise vxl2.RequestError(f"--ranges: {text} does not lie in 32-1024 seconds")
    return shortest, longest


def as_text(report: dict) -> str:
    """The report for a terminal."""
    lines = []
    for name, part in report["ranges"].items():
        lines.append(f"clips of {name} seconds")
        for mode, marks in part["modes"].items():
            (low, high), within = marks["interval"], marks["inside"]
            lines.append(
                f"  {mode:21s} {marks['accuracy']:5.1f} % ({low} – {high})  bytes {100 * marks['cache_ratio']:.0f} %  "
                f"inside {within.get('accuracy', float('nan')):.1f} % of {within['questions']}"
            )
        for kind in TYPES:
            if kind in part["modes"]["dense"]["by_type"]:
                each = {mode: marks["by_type"][kind] for mode, marks in part["modes"].items()}
                rates = "  ".join(f"{mode} {marks['accuracy']:.0f}" for mode, marks in each.items())
                asked = each["dense"]
                lines.append(f"  {kind:8s} {asked['questions']:4d} asked, chance {asked['chance']:.0f}:  {rates}")
        for name, found in part["differences"].items():
            if found["questions"]:
                low, high = found["interval"]
                lines.append(f"  {name}: {found['points']:+.1f} ({low} – {high}) of {found['questions']} questions")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"evaluate_nano: {error}")
