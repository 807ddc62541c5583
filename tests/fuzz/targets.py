"""What is fuzzed: per kind of input a strategy that draws it, and a function that reads it and checks the result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.fuzz import stored
from tests.fuzz.values import ANY, NUMERALS, TEXTS, mutated
from vxl2_jax import evaluation
from vxl2_jax.checkpoints.fetch import NANO
from vxl2_jax.cli import batch
from vxl2_jax.cli.batch import open_locked
from vxl2_jax.evaluation import data, grounding_data, subtitles
from vxl2_jax.lmms_plugin import requests
from vxl2_jax.lmms_plugin import settings as plugin
from vxl2_jax.options import RANGES, AskOptions, WatchOptions
from vxl2_jax.relevance import oracle
from vxl2_jax.text import prompt, typed
from vxl2_jax.text.tokenizer import Tokenizer
from vxl2_jax.training import conversations, settings


class Target(NamedTuple):
    """draw: strategy of inputs; read: (an input, an empty folder) → reads it, and asserts that the result is right."""

    draw: st.SearchStrategy
    read: Callable[[Any, Path], None]


def lines_of(rows: st.SearchStrategy) -> st.SearchStrategy:
    """Files of JSON lines or a JSON list; some are cut off, have bytes replaced, or a byte order mark."""

    def write(drawn: tuple) -> bytes:
        rows, listed, ascii_only, cut, noise, mark = drawn
        texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        text = f"[{','.join(texts)}]" if listed else "\n".join(texts)
        content = bytearray(text.encode("utf-8", "surrogatepass"))
        for place, byte in noise:
            if content:
                content[place % len(content)] = byte
        return b"\xef\xbb\xbf" * mark + bytes(content[: len(content) - cut])

    byte = st.tuples(st.integers(0, 10**6), st.integers(0, 255))
    return st.tuples(
        st.lists(rows, max_size=4),
        st.booleans(),
        st.booleans(),
        st.sampled_from([0, 0, 0, 0, 1, 3]),
        st.just([]) | st.just([]) | st.lists(byte, max_size=2),
        st.booleans(),
    ).map(write)


def file_of(content: bytes, folder: Path, name: str = "file.jsonl") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


JOB = {"video": "a.mp4", "questions": ["What?", "Is it?"], "id": 7}


def read_jobs(content: bytes, folder: Path) -> None:
    lines = batch._read_jobs(file_of(content, folder))
    assert any(line.problem is None for line in lines)
    rows = [{"job": line.job, **({"error": line.problem} if line.problem else {"answers": []})} for line in lines]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    cut = len(text) * 2 // 3  # killed there
    (folder / "answers").write_text(text[:cut])
    with open_locked(folder / "answers") as file:
        found, _ = batch._read_answers(file, folder / "answers", lines)
    done = text[:cut].count("\n")
    # Each answer is of one line, and of equal lines the first are answered.
    assert found.total() == done and len(batch._missing(lines, found)) == len(lines) - done


CONVERSATION = {
    "video": "a.mp4",
    "conversations": [{"from": "human", "value": "<video>Is it?"}, {"from": "gpt", "value": "yes"}],
}
CHAT = {
    "videos": ["a.mp4"],
    "messages": [
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Is it?"}]},
        {"role": "assistant", "content": "yes"},
    ],
}
QUESTION, ANSWER = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "yes"}
MESSAGE, REPLY = (
    st.just(one) | TEXTS.map(lambda text, one=one: {**one, "content": text}) | mutated(one)
    for one in (QUESTION, ANSWER)
)


def read_conversations(content: bytes, folder: Path) -> None:
    found, problems = conversations.read([file_of(content, folder)])
    assert found and all("\n" not in problem for problem in problems)
    for each in found:
        assert all(question.strip() and answer.strip() for question, answer in each.turns)
        prompt.suffix_ids(nano(), each.turns[-1][0], each.turns[:-1])


DOCS: dict[str, list[dict[str, Any]]] = {
    "mlvu": [
        {"video_name": "a.mp4", "question": "?\n(A) x", "answer": "A", "task_type": "ego", "duration": 9},
        {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "y", "question_type": "ego"},
    ],
    "video_mme": [
        {
            "videoID": "a",
            "duration": "short",
            "domain": "d",
            "sub_category": "s",
            "task_type": "t",
            "question": "?",
            "options": ["A. x", "B. y"],
            "answer": "B",
            "question_id": "1",
        }
    ],
    "longvideobench": [
        {
            "id": "1",
            "video_path": "a.mp4",
            "question": "?",
            "candidates": ["x", "y"],
            "correct_choice": 1,
            "duration_group": 15,
            "question_category": "c",
            "duration": 9.5,
        }
    ],
    "lvbench": [
        {"key": "a", "type": "tv", "qa": [{"question": "?\n(A) x\n(B) y", "answer": "B", "question_type": ["k"]}]},
        {"video": "a", "question": "?", "candidates": ["x"], "answer": "x", "type": "tv", "question_type": ["k"]},
    ],
}


def read_annotations(name: str, content: bytes, folder: Path) -> None:
    benchmark, left_out = evaluation.get_benchmark(name), []
    items = data.read(benchmark, folder, annotations=[file_of(content, folder)], left_out=left_out.append)
    assert all("\n" not in problem for problem in left_out)
    data.digest(benchmark, items)
    for item in items:
        assert item.rows and len(set(data.question_keys(item))) == len(item.rows)
        for row in item.rows:
            benchmark.prompt(row).encode()  # no lone surrogates
            verdict = evaluation.judge(benchmark, row, "A")
            assert not (row.answer is None and (verdict.counted or verdict.correct))


def read_moments(form: str, content: bytes, folder: Path) -> None:
    for moment in grounding_data.read_moments(form, file_of(content, folder))[0]:
        assert moment.windows and all(0 <= start < end for start, end in moment.windows)


def read_subtitles(content: str, folder: Path) -> None:
    for start, end in subtitles.parse(content):
        assert start >= 0 and end >= 0
    subtitles.at_frames(content, 25.0, 1000)


def read_question(drawn: tuple, folder: Path) -> None:
    question, earlier, answer = drawn
    text, *turn = (typed.prepare(one) for one in (question, earlier, answer))
    ids = prompt.suffix_ids(nano(), text, [tuple(turn)])
    for marker in prompt.MARKERS:
        assert ids.count(*nano().encode(marker)) == 3
    nano().decode(ids)
    shown = typed.printable(question)
    assert "\x1b" not in shown and json.loads(typed.printable_json(shown)) == shown


def read_options(drawn: tuple, folder: Path) -> None:
    name, text, value = drawn
    parsed = RANGES[name].parse(name, text)
    assert parsed is None or RANGES[name].minimum <= parsed <= RANGES[name].maximum
    RANGES[name].check(name, value)


def read_keywords(drawn: tuple, folder: Path) -> None:
    cls, keywords = drawn
    options = cls()
    for name, value in keywords.items():
        object.__setattr__(options, name, value)  # without the type checks of a test run
    options.check()
    repr(options)


def read_arguments(arguments: dict, folder: Path) -> None:
    found = plugin.read(arguments)
    WatchOptions(**found.watch).check()
    AskOptions(**found.ask).check()


def read_generation(given: dict, folder: Path) -> None:
    ask, until = requests.generation(given, "here")
    AskOptions(**ask).check()
    assert all(isinstance(text, str) and text for text in until)


def read_settings(drawn: tuple, folder: Path) -> None:
    text, changes = drawn
    for before, after in changes:
        text = text.replace(before, after)
    parsed = settings.read(file_of(text.encode("utf-8", "surrogatepass"), folder, "train.toml"))
    assert parsed.data.files and parsed.stages


def read_oracle(content: bytes, folder: Path) -> None:
    for choice in oracle.read(file_of(content, folder, "oracle.json")).choices.values():
        assert choice.units is None or all(unit >= 0 for unit in choice.units)


def read_responses(content: bytes, folder: Path) -> None:
    pairs, _ = evaluation.read_responses(evaluation.get_benchmark("lvbench"), file_of(content, folder))
    assert pairs


@functools.cache
def nano() -> Tokenizer:
    return Tokenizer.read(NANO)


ORACLE = {
    "config": {"selected_topk": 4, "selected_chunk_size": 4, "compression": 4},
    "selected_unit_indices": {"a.mp4_?": [1, 2], "b.mp4_?": []},
}
CUES = st.lists(
    st.one_of(
        st.sampled_from(["1", "", "00:00:00,000 --> 00:00:04,000", "0:0:0.5 --> 9999:99:99.999 X1:1", "--> -->"]),
        st.sampled_from(['<font color="white" size=".72c">hello</font>', "99:99:99,999 --> 00:00:00,000", "\r"]),
        TEXTS,
    ),
    max_size=12,
).map("\n".join)
STA = st.lists(
    st.sampled_from(["V 1.0 2.5##a man.", "V 1 nan##x", "V 1e400 2##x", "V -1 2##x", "##"]) | TEXTS, max_size=4
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
QVHIGHLIGHTS = {"qid": 1, "vid": "a", "query": "q", "duration": 9, "relevant_windows": [[1, 2]]}
TOML = st.tuples(
    st.just(settings.EXAMPLE),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["1.0", "4", "16", "32.0", '"none"', '"all"', "true", '["language"]', "[lora]", "=", "epochs", "\n"]
            ),
            st.one_of(NUMERALS, st.sampled_from(["nan", "inf", "-1", "1e400", "[]", "{}", '""', "true", "[[stages]]"])),
        ),
        max_size=2,
    ),
)
KEYWORDS = st.dictionaries(st.sampled_from(["fps", "max_frames", "block_size", "compression"]), ANY, max_size=2)
ASK_KEYWORDS = st.dictionaries(st.sampled_from(["top_k", "seed", "top_p", "relevance", "text"]), ANY, max_size=2)
ARGUMENTS = st.dictionaries(st.sampled_from(plugin.KNOWN), ANY, max_size=2)
GENERATION = st.dictionaries(
    st.sampled_from(["max_new_tokens", "temperature", "top_p", "num_beams", "until"]), ANY, max_size=2
)

TARGETS: dict[str, Target] = {
    "jobs": Target(lines_of(mutated(JOB) | ANY), read_jobs),
    "conversations": Target(
        lines_of(mutated(CONVERSATION) | mutated(CHAT) | mutated({**CHAT, "messages": []}) | ANY), read_conversations
    ),
    "messages": Target(
        lines_of(
            st.lists(st.tuples(MESSAGE, REPLY), max_size=3).map(lambda found: {**CHAT, "messages": sum(found, ())})
        ),
        read_conversations,
    ),
    **{
        f"annotations of {name}": Target(
            lines_of(st.one_of(*map(mutated, docs), ANY)), functools.partial(read_annotations, name)
        )
        for name, docs in DOCS.items()
    },
    "charades_sta": Target(STA, functools.partial(read_moments, "charades_sta")),
    "qvhighlights": Target(lines_of(mutated(QVHIGHLIGHTS) | ANY), functools.partial(read_moments, "qvhighlights")),
    "subtitles": Target(CUES, read_subtitles),
    "questions": Target(st.tuples(TEXTS, TEXTS, TEXTS), read_question),
    "numbers": Target(st.tuples(st.sampled_from(list(RANGES)), NUMERALS, ANY), read_options),
    "keywords": Target(
        st.tuples(st.just(WatchOptions), KEYWORDS) | st.tuples(st.just(AskOptions), ASK_KEYWORDS), read_keywords
    ),
    "arguments of lmms-eval": Target(ARGUMENTS, read_arguments),
    "generation_kwargs": Target(GENERATION, read_generation),
    "settings": Target(TOML, read_settings),
    "oracle": Target(
        lines_of(st.fixed_dictionaries({"ego": mutated(ORACLE) | ANY}) | ANY).map(lambda text: text.strip(b"[]")),
        read_oracle,
    ),
    "responses": Target(
        lines_of(mutated({"benchmark": "lvbench", "response": "B", "answer": "B"}) | ANY), read_responses
    ),
    "configurations of checkpoints": Target(stored.CONFIGS, stored.read_configs),
    "runs": Target(stored.RUNS, stored.read_run),
    "memories": Target(stored.MEMORIES, stored.read_memory),
}
