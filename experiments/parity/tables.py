"""prefill_flops.json and text_and_sampling.json: pair counts, frame choice, prompts, timestamps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from experiments.parity.golden import GoldenError
from experiments.parity.report import Report
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer
from vxl2_jax.video.sampling import frame_seconds, sample_indices

# Ids of Qwen's tokenizer for the characters of a timestamp: it splits digits one by one.
_CHARACTERS = {" ": 220, ".": 13, "s": 82, ":": 25, **{str(digit): 15 + digit for digit in range(10)}}


def stamp_ids(text: str, time_word: int) -> list[int]:
    """Qwen ids of "Time 12.5s:"."""
    return [time_word, *(_CHARACTERS[c] for c in text.removeprefix("Time"))]


def check_flops(report: Report, table: dict, frames_per_group: int) -> None:
    """Allowed pairs per setting, exact."""
    for row in table["rows"]:
        name = f"flops {row['frames']} frames b{row['block_size']} p{row['prev_blocks']} {row['seconds_per_frame']}s"
        groups = -(-row["frames"] // frames_per_group)
        texts = [prompt.timestamp_text(frames_per_group * g * row["seconds_per_frame"]) for g in range(groups)]
        layout = Layout(
            row["prefix_tokens"], tuple(len(stamp_ids(t, 0)) for t in texts), table["visual_tokens_per_group"]
        )
        kept, causal = attention_pairs(layout, PrefillRule(row["block_size"], row["prev_blocks"]), row["suffix_tokens"])
        derived = {
            "groups": layout.groups,
            "num_blocks": layout.chunks(row["block_size"]),
            "timestamp_tokens": sum(layout.timestamp_lengths),
            "visual_token_end_pos": layout.length,
            "total_len": layout.length + row["suffix_tokens"],
            "num_allowed": kept,
            "upper_triangle": causal,
            "ratio": kept / causal,
            "reduction_percent": round(100 * (1 - kept / causal), 6),
        }
        given = {"frames", "block_size", "prev_blocks", "seconds_per_frame", "prefix_tokens", "suffix_tokens"}
        compare_row(report, name, row, derived, given)
    unknown(report, "prefill_flops.json", table, {"description", "visual_tokens_per_group", "rows"})


def check_texts(report: Report, table: dict, special: dict, tokenizer: Path | None) -> None:
    """Sampling, clock times, prompts, timestamps."""
    reader = Tokenizer(tokenizer.read_text(encoding="utf-8")) if tokenizer else None
    for kind in ("truncating", "non_truncating"):
        for row in table.get(kind, ()):
            check_sampling(report, kind, row)
    for number, row in enumerate(table.get("time_in_prompt", ())):
        rewritten = prompt.original_clock_times(row["input"])
        compare_row(report, f"text clock times {number}", row, {"output": rewritten}, {"input"})
    for number, row in enumerate(table.get("prompts", ())):
        prefix, suffix = prompt.prefix_text(), prompt.suffix_text(row["question"], style=prompt.ORIGINAL)
        derived, given = {"prompt": f"{prefix}<image>{suffix}"}, {"question"}
        if reader:
            before = reader.encode(prefix)
            ids = [*before, special["image_token_index"], *reader.encode(suffix)]
            derived |= {"input_ids": ids, "image_token_pos": len(before)}
        else:
            given |= {"input_ids", "image_token_pos"}
        compare_row(report, f"text prompt {number}", row, derived, given)
    if table.get("prompts") and not reader:
        report.note("ids of prompts need Qwen's tokenizer: give --tokenizer to compare them, too")
    word = special.get("real", special)["time_word"]
    for row in table.get("timestamps", ()):
        second = re.fullmatch(r"Time ([\d.]+)s:", row["text"])
        if not second:
            raise GoldenError(f"text_and_sampling.json: {row['text']!r} is not a timestamp")
        text = prompt.timestamp_text(float(second[1]))
        ids = reader.encode(text) if reader else stamp_ids(text, word)
        compare_row(report, f"text timestamp {row['text']!r}", row, {"text": text, "ids": ids}, set())
    kinds = {"truncating", "non_truncating", "time_in_prompt", "prompts", "timestamps"}
    unknown(report, "text_and_sampling.json", table, kinds)
    for kind in sorted(kinds - table.keys()):
        report.note(f"text_and_sampling.json holds no {kind}")


def check_sampling(report: Report, kind: str, row: dict) -> None:
    """One video: which frames are taken. Where the original raises, the answer must be sensible."""
    given = {"total_frames", "native_fps", "max_frames_num", "fps", "max_fps"}
    name = f"sampling {kind} {row['total_frames']} at {row['native_fps']}, max {row['max_frames_num']}"
    index = sample_indices(
        row["total_frames"],
        row["native_fps"],
        fps=row["fps"],
        max_frames=row["max_frames_num"],
        max_fps=row["max_fps"],
        multiple_of_4=kind == "truncating",
    )
    if "error" in row:
        sensible = 1 <= len(index) <= row["max_frames_num"] and index[0] == 0 and index[-1] < row["total_frames"]
        rising = bool(np.all(np.diff(index) > 0))
        report.line(f"{name} (original: {row['error']})", f"{len(index)} frames", "sensible", bool(sensible) and rising)
        return
    seconds = frame_seconds(index, row["native_fps"])
    heads = {key: len(row[key]) for key in ("frame_idx_head", "frame_idx_tail", "group_timestamps") if row.get(key)}
    derived = {
        "num": len(index),
        "frame_idx": row.get("frame_idx") and index.tolist(),
        "frame_idx_sum": int(index.sum()),
        "frame_idx_head": index[: heads.get("frame_idx_head", 0)].tolist(),
        "frame_idx_tail": index[len(index) - heads.get("frame_idx_tail", 0) :].tolist(),
        "num_groups": -(-len(index) // 4),
        "last_timestamp": str(seconds[-1]),
        "group_timestamps": [prompt.timestamp_text(s) for s in seconds[::4]][: heads.get("group_timestamps", 0)],
    }
    compare_row(report, name, row, derived, given)


def compare_row(report: Report, name: str, row: dict, derived: dict, given: set[str]) -> None:
    """One line per table row: all its derived fields must be equal, and none may be unknown."""
    strange = sorted(row.keys() - derived.keys() - given)
    wrong = [key for key in derived if key in row and not same(derived[key], row[key])]
    found = f"differs: {', '.join(wrong)}" if wrong else f"not checked: {', '.join(strange)}" if strange else "exact"
    report.line(name, found, "exact", not wrong and not strange)


def same(got: object, want: object) -> bool:
    """Equality; floats (ratios) to double rounding."""
    if isinstance(got, float) and isinstance(want, (int, float)):
        return abs(got - want) <= 1e-9 * max(1.0, abs(want))
    return got == want


def unknown(report: Report, file: str, table: dict, known: set[str]) -> None:
    """Fail for parts of a table that nobody looks at."""
    for key in sorted(table.keys() - known):
        report.fail(f"{file} {key}", "not checked")
