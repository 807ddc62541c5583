"""Whether a model finds the needles of a long video: are they among the chunks that a question loads dense?

    python experiments/make_long_clip.py --hours 2.8 --seed 7 --out long.mp4 --answers long.json
    python experiments/find_needles.py --video long.mp4 --answers long.json

The video is watched once; then every question of the answers file is asked (--types chooses among them). A
needle's chunk is the one that shows it longest. For every question: is that chunk dense, its rank by score among the
chunks that have to be chosen (first and last are always dense), and is the answer right. A "first" question is about
two needles, and the chunk looked for is that of the earlier one.

Peak memory is the resident memory of this process. `chance` is how often so many chunks by lot hold the needle's.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from nano.needles import judge
from nano.questions import TYPES
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vxl2_jax as vxl2

_VIDEO = flags.DEFINE_string("video", None, "The film, as make_long_clip.py makes it.", required=True)
_ANSWERS = flags.DEFINE_string("answers", None, "Its questions and needles.", required=True)
_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory.")
_MEMORY = flags.DEFINE_string("memory", None, "Memory file: written while watching; read if it is there.")
_TYPES = flags.DEFINE_list("types", ["exists", "when"], f"Types of questions asked, of {', '.join(TYPES)}.")
_FPS = flags.DEFINE_float("fps", 1.0, "Frames per second watched.")
_COMPRESSION = flags.DEFINE_integer("compression", 4, "Visual tokens pooled into one in the sparse level.")
_TOP_K = flags.DEFINE_integer("top_k", 4, "Chunks chosen beside the first and the last.", lower_bound=0)
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 4, "Groups (of four frames) per chunk.", lower_bound=1)
_RELEVANCE = flags.DEFINE_string("relevance", "attention", "How chunks are scored; see `vxl2 ask --help`.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of --relevance random.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object alone on standard output.")


def watch(model: vxl2.Model, timings: dict[str, float]) -> vxl2.VideoMemory:
    """The film's memory; with --memory written there, gone on with if it was cut off, or read if it is there."""
    columns = TextColumn("watching"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("watching", total=None)
        return model.watch(
            _VIDEO.value, fps=_FPS.value, compression=_COMPRESSION.value, out=_MEMORY.value, timings=timings,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def read_answers(path: str) -> tuple[list[dict], dict[str, dict]]:
    """(questions of the wanted types, needles by name) of an answers file."""
    try:
        content = json.loads(Path(path).read_text())
        events = {event["name"]: event for event in content["events"]}
        asked = [q for q in content["questions"] if q["type"] in _TYPES.value and q["needle"] in events]
    except OSError as error:
        raise vxl2.RequestError(f"{path}: cannot read the answers ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise vxl2.RequestError(f"{path}: not an answers file of make_long_clip.py ({error!r})") from error
    if not asked:
        wanted = " or ".join(_TYPES.value)
        raise vxl2.RequestError(f"{path}: no question of type {wanted}; there are {', '.join(TYPES)}")
    return asked, events


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    asked, events = read_answers(_ANSWERS.value)
    model = vxl2.load(_MODEL.value)
    timings: dict[str, float] = {}
    began = time.perf_counter()
    memory = watch(model, timings)
    watched = time.perf_counter()
    answers = model.ask(
        memory, [question["question"] for question in asked], relevance=_RELEVANCE.value, top_k=_TOP_K.value,
        chunk_size=_CHUNK_SIZE.value, max_new_tokens=8, seed=_SEED.value,
    )
    rows = [judge(each, events[each["needle"]], answer) for each, answer in zip(asked, answers, strict=True)]
    chunks = len(answers[0].chunks)
    report = {
        "video": memory.video, "frames": memory.frames, "tokens": memory.layout.length, "chunks": chunks,
        "settings": {
            "relevance": _RELEVANCE.value, "top_k": _TOP_K.value, "chunk_size": _CHUNK_SIZE.value,
            "compression": memory.compression,
        },
        "by_type": {
            kind: {
                "asked": len(part), "dense": sum(row["dense"] for row in part),
                "right": sum(row["right"] for row in part),
                "median_rank": float(np.median([row["rank"] for row in part])),
            }
            for kind in TYPES if (part := [row for row in rows if row["type"] == kind])
        },
        "chance": round(min(1.0, _TOP_K.value / max(chunks - 2, 1)), 4),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "cores": os.cpu_count(),
        "seconds": {
            "watch": round(watched - began, 1), **{stage: round(value, 1) for stage, value in timings.items()},
            "ask": round(time.perf_counter() - watched, 1),
        },
        "needles": rows,
    }
    print(json.dumps(report, indent=1) if _JSON.value else as_text(report))
    return 0


def as_text(report: dict) -> str:
    """The report for a terminal."""
    lines = [
        f"{row['question']:38s} at {row['start_s']:7.0f} s  chunk {row['chunk']:4d}  rank {row['rank']:4d}  "
        f"{'dense ' if row['dense'] else 'pooled'}  {'right' if row['right'] else 'wrong'}: {row['answer']}"
        for row in report["needles"]
    ]
    lines += [
        f"{kind}: the needle's chunk is dense in {part['dense']} of {part['asked']} "
        f"(by lot {100 * report['chance']:.1f} %), median rank {part['median_rank']:g} of {report['chunks']}; "
        f"{part['right']} answers right"
        for kind, part in report["by_type"].items()
    ]
    seconds = ", ".join(f"{stage} {value:g} s" for stage, value in report["seconds"].items())
    lines.append(f"{report['frames']} frames; peak memory {report['peak_bytes'] / 2**30:.2f} GiB; {seconds}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"find_needles: {error}")
