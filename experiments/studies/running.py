"""Running a study: every clip is watched once per rule and asked all its questions in every setting.

Answers are appended to a file of rows, a line a clip, so that a run that was cut off goes on where it was. One process
at a time writes a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.studies import memories, recall
from experiments.studies.study import Asked, Setting, Study
from experiments.synthetic import questions
from vxl2_jax import Answer, Model, RequestError, VideoMemory
from vxl2_jax.layout import PrefillRule, attention_pairs
from vxl2_jax.storage import jsonl
from vxl2_jax.storage.locking import open_locked
from vxl2_jax.text import prompt

MOST_TOKENS = 20  # of an answer; the longest that is right has 15


def identity(study: Study, model: Model, seed: int, footage: str) -> dict[str, Any]:
    """What rows of one file have in common; the first line of the file."""
    settings = {name: dataclasses.asdict(setting) for name, setting in study.settings.items()}
    return {
        "study": study.rows_name,
        "model": model.fingerprint,
        "seed": seed,
        "footage": footage,
        "settings": settings,
        "contents": list(study.contents),
    }


def run(
    study: Study,
    model: Model,
    path: Path,
    clips: int,
    seed: int,
    footage: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The rows of `clips` clips of each kind, the missing ones made and appended to the file.

    progress: called with (clips done, clips in all). Raises RequestError for a file of other settings, one that another
    process is writing, and one that cannot be written.
    """
    wanted = [(content, number) for number in range(clips) for content in study.contents]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{path.parent}: cannot be made ({error.strerror}); choose another --rows") from error
    with open_locked(path) as file:
        rows = resume(file, path, identity(study, model, seed, footage))
        known = {(row["content"], row["clip"]) for row in rows}
        for done, (content, number) in enumerate(wanted):
            progress(done, len(wanted))
            if (content, number) not in known:
                row = {"content": content, "clip": number, **_row(study, model, content, (seed, number), footage)}
                jsonl.append(file, row)
                rows.append(row)
    progress(len(wanted), len(wanted))
    return [row for row in rows if row["clip"] < clips]


def resume(file: IO[str], path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a file holds already, ready for more: `about` is its first line, half a line at its end is removed.

    Raises RequestError for a file of other settings, or of something else; it is left as it is.
    """
    try:
        whole, torn = jsonl.read_lines(file)
        found = [json.loads(line) for line in whole]
    except ValueError as error:
        raise RequestError(f"{path}: is no file of a study's rows; choose another --rows") from error
    if found and found[0] != about or not found and not json.dumps(about).startswith(torn):
        raise RequestError(f"{path}: rows of another model or of other settings; remove it or choose another --rows")
    jsonl.truncate_after(file, whole)
    if not found:
        jsonl.append(file, about)
    return found[1:]


def _row(study: Study, model: Model, content: str, stream: tuple[int, int], footage: str) -> dict[str, Any]:
    """All answers about one clip."""
    rng = np.random.default_rng([*stream, 20261121])
    clip, asked = study.contents[content](rng, footage)
    frames = memories.frames_of(clip, model.config.vision.image_size)
    tokens, seconds = memories.visual_tokens(model, frames), np.arange(len(frames), dtype=float)
    watched: dict[PrefillRule, VideoMemory] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, setting in study.settings.items():
        if setting.rule not in watched:
            watched[setting.rule] = memories.remember(model, tokens, seconds, setting.rule, setting.compression)
        memory = watched[setting.rule]
        if setting.compression != memory.compression:
            memory = memory.with_compression(setting.compression)
        answers = ask(model, memory, asked, setting, stream)
        kept, causal = attention_pairs(memory.layout, setting.rule)
        pairs = [(one.question, answer) for one, answer in zip(asked, answers, strict=True)]
        found[name] = {
            "right": [int(questions.is_right(question, answer.text)) for question, answer in pairs],
            "held": [held(question, answer, setting.chunk_size) for question, answer in pairs],
            "said": [answer.text for answer in answers],
            "chosen": sum(chunk.dense for chunk in answers[0].chunks[1:-1]),
            "loaded": answers[0].cache_tokens,
            "dense": answers[0].cache_tokens_dense,
            "pairs": kept,
            "causal": causal,
        }
    said = [[one.label, one.question.question, one.question.answer] for one in asked]
    return {"seconds": clip.seconds, "asked": said, "settings": found}


def ask(
    model: Model, memory: VideoMemory, asked: list[Asked], setting: Setting, stream: tuple[int, int] = (0, 0)
) -> list[Answer]:
    """The questions' answers in one setting; `stream` seeds the lots."""
    texts = [one.question.question for one in asked]
    top_k = None if setting.share is None else memories.interior(memory, setting.share, setting.chunk_size)
    # Nothing is chosen where all is dense: then a score that costs nothing will do.
    relevance: Any = "recent" if top_k is None else setting.relevance
    if relevance in ("lot", "evidence"):
        relevance = _given(model, memory, asked, setting, np.random.default_rng([*stream, 20261122]))
    return model.ask(
        memory, texts, top_k=top_k, relevance=relevance, chunk_size=setting.chunk_size, max_new_tokens=MOST_TOKENS
    )


def _given(
    model: Model, memory: VideoMemory, asked: list[Asked], setting: Setting, rng: np.random.Generator
) -> Callable[[np.ndarray, VideoMemory], np.ndarray]:
    """A scorer by lot that, for "evidence", puts first what each question's answer rests on (`recall.known`)."""
    chunks, scores = memory.layout.chunks(setting.chunk_size), {}
    for _, question in asked:
        lot = rng.random(chunks)
        if setting.relevance == "evidence":
            known = recall.known(shown_in(question, setting.chunk_size, chunks), chunks)
            lot = np.where(known > 0, 1 + known, lot)
        scores[tuple(model.tokenizer.encode(prompt.suffix_text(question.question)))] = lot
    return lambda ids, memory: scores[tuple(ids.tolist())]


def shown_in(question: questions.Question, chunk_size: int, chunks: int) -> list[list[int]]:
    """For every event that the answer rests on, the chunks, counted from 1, that show it; the longest shown first."""
    return [questions.chunks_of(span, chunk_size, chunks) for span in question.evidence]


def held(question: questions.Question, answer: Answer, chunk_size: int) -> int | None:
    """Whether of every event that the answer rests on a chunk was dense; None where it rests on nothing shown."""
    events = shown_in(question, chunk_size, len(answer.chunks))
    seen = [any(answer.chunks[number - 1].dense for number in event) for event in events]
    return int(all(seen)) if seen else None
