"""Files that the program reads back: memories with right checksums, configurations of checkpoints, folders of runs."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.values import ANY, mutated
from vxl2_jax.checkpoints import config_files
from vxl2_jax.checkpoints.fetch import NANO
from vxl2_jax.checkpoints.shards import Shards
from vxl2_jax.config import LanguageConfig
from vxl2_jax.evaluation import compare, report
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory, identity
from vxl2_jax.storage import records
from vxl2_jax.storage.memory_file import CacheShape, record_lengths

CONFIG = json.loads((NANO / "config.json").read_text())
VISION = json.loads((NANO / "vision_config.json").read_text())
SPECIAL = {"visual_placeholder": 1, "visual_tokens_per_group": 9}
ROPES = st.dictionaries(
    st.sampled_from(["rope_type", "type", "rope_theta", "factor", "partial_rotary_factor"]),
    st.sampled_from(["default", "yarn", 1, 1e6, 2.0, None]) | ANY,
    max_size=2,
)
CONFIGS = st.fixed_dictionaries(
    {
        "config.json": mutated(CONFIG)
        | st.tuples(st.sampled_from(["rope_scaling", "rope_parameters"]), ROPES).map(
            lambda rope: {**CONFIG, rope[0]: rope[1]}
        )
        | mutated(CONFIG["vxl2"]).map(lambda extra: {**CONFIG, "vxl2": extra})
        | ANY,
        "vision_config.json": st.just(VISION) | mutated(VISION) | ANY,
    },
    optional={"special_tokens.json": mutated(SPECIAL) | ANY},
)


@functools.cache
def shards() -> Shards:
    return Shards(NANO)


def read_configs(contents: dict[str, Any], folder: Path) -> None:
    for name in ("config.json", "vision_config.json", "special_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8", errors="replace")
    language = config_files.read_config(folder, shards()).language
    assert isinstance(language, LanguageConfig) and language.heads % language.kv_heads == 0
    assert math.isfinite(language.rope_theta) and language.rope_theta >= 1


SHAPE, LAYOUT = CacheShape(1, 1, 2, "float32"), Layout(2, (3, 4, 3), 4)
IDENTITY = identity(
    SHAPE,
    LAYOUT,
    PrefillRule(2, 1),
    (0.0, 4.0, 8.0),
    compression=2,
    end_s=12.0,
    last_s=11.0,
    frames=12,
    rope_theta=1e6,
    model="toy",
    video="a.mp4",
    fingerprint="0",
    reading="",
    generated=False,
)
IDENTITIES = (
    st.just(IDENTITY)
    | mutated(IDENTITY)
    | mutated(IDENTITY["layout"]).map(lambda part: {**IDENTITY, "layout": part})
    | mutated(IDENTITY["rule"]).map(lambda part: {**IDENTITY, "rule": part})
    | ANY
)
OPEN = {"tokens": ["float32", [1, 4, 2]], "frames": ["uint8", [1, 1, 1, 3]]}
FACTS = {"video_hash": "0", "distinct_frames": 9, "notes": ["a hole"]}
LENGTHS = {
    "GROUPS": record_lengths(LAYOUT, SHAPE)[0],
    "SPARSE": SHAPE.bytes(LAYOUT.sparse_length(2)),
    "OPEN": 4 * 8 + 3,
}
MEMORIES = st.tuples(
    IDENTITIES,
    mutated(OPEN),
    st.just(FACTS) | mutated(FACTS),
    st.just(["IDENTITY", "GROUPS", "SPARSE", "OPEN", "FACTS", "END"])
    | st.lists(st.sampled_from(["IDENTITY", "GROUPS", "SPARSE", "OPEN", "FACTS", "END", "OTHER"]), max_size=7),
    st.sampled_from([0, 0, 0, 1, -1, 64, 10**6]),
)


def read_memory(drawn: tuple, folder: Path) -> None:
    content, header, facts, kinds, more = drawn
    parts = {
        "IDENTITY": json.dumps(content).encode(errors="replace"),
        "FACTS": json.dumps(facts).encode(errors="replace"),
        "OPEN": json.dumps(header).encode(errors="replace") + b"\n",
    }
    with (folder / "m.memory").open("wb") as file:
        records.start(file)
        for kind in kinds:
            records.append(
                file, kind, [parts.get(kind, b"") + bytes(max(LENGTHS.get(kind, 0) + more, 0) * (kind in LENGTHS))]
            )
    memory = VideoMemory.load(folder / "m.memory")
    assert memory.layout.groups == len(memory.seconds) and memory.frames >= 1
    assert memory.sparse.k.shape[2] >= memory.sparse_length


ANSWER = {
    "key": "a.mp4#0",
    "id": None,
    "question": "What?",
    "answer": "A",
    "response": "A",
    "read": "A",
    "correct": True,
    "counted": True,
    "named": True,
    "groups": {"task": ["count"], "duration": ["3", "20"]},
    "cache": {"tokens": 3, "tokens_dense": 9},
}
ENTRY = {"outcome": "chosen", "category": "ego", "units": 2, "chunk_size": 4, "compression": None}
RECORD = {
    "index": 0,
    "video": "a.mp4",
    "file": "a.mp4",
    "frames": 4,
    "end_s": 4.0,
    "tokens": 21,
    "attention": {"pairs_kept": 5, "pairs_causal": 9},
    "watching_s": {"read": 0.1},
    "asking_s": {},
    "answers": [ANSWER],
    "wall_s": 1.5,
    "executables": 2,
}
SETTINGS = {
    "benchmark": "lvbench",
    "mode": "bilevel",
    "videos": 1,
    "questions": 1,
    "subtitles": False,
    "left_out": [],
    "watch": {"fps": 1.0, "max_frames": None},
    "ask": {"top_k": 4, "relevance": "attention"},
}
MADE_WITH = {"model": "nano", "device": "cpu"}
RECORDS = (
    mutated(RECORD)
    | mutated(ANSWER).map(lambda answer: {**RECORD, "answers": [answer]})
    | mutated(ENTRY).map(lambda entry: {**RECORD, "answers": [{**ANSWER, "oracle": entry}]})
    | st.just({"index": 1, "video": "b.mp4", "error": "gone"})
)
RUNS = st.tuples(
    st.just(SETTINGS) | st.just({**SETTINGS, "oracle": "0"}) | mutated(SETTINGS) | ANY,
    st.just(MADE_WITH) | mutated(MADE_WITH) | ANY,
    st.lists(RECORDS | ANY, max_size=3),
)


def read_run(drawn: tuple, folder: Path) -> None:
    settings, made_with, found = drawn
    (folder / "run.json").write_text(
        json.dumps({"settings": settings, "made_with": made_with}), encoding="utf-8", errors="replace"
    )
    lines = "".join(json.dumps(record) + "\n" for record in found)
    (folder / "rows.0-of-1.jsonl").write_text(lines, encoding="utf-8", errors="replace")
    data = report.summarise(folder)
    assert report.as_markdown(data).startswith("# ") and json.dumps(data)
    run = compare.read(folder)
    assert compare.as_markdown(compare.compare(run, run))
