"""Output of the command line: plain data for --json, rich text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vxl2_jax.answer import Answer
from vxl2_jax.layout import attention_pairs
from vxl2_jax.memory import VideoMemory
from vxl2_jax.planning import DeviceSpec, Plan
from vxl2_jax.text.typed import printable


def as_data(memory: VideoMemory, answers: Sequence[Answer], timings: dict[str, float]) -> dict[str, Any]:
    """One JSON-ready document of a watched video and the answers about it."""
    kept, causal = attention_pairs(memory.layout, memory.rule)
    return {
        "video": {
            "name": memory.video,
            "frames": memory.frames,
            "distinct_frames": memory.distinct_frames or None,
            "groups": memory.layout.groups,
            "end_s": memory.end_s,
            "tokens": memory.layout.length,
            "notes": list(memory.notes),
        },
        "settings": {
            "block_size": memory.rule.block_size,
            "prev_blocks": memory.rule.prev_blocks,
            "compression": memory.compression,
        },
        "attention": {
            "pairs_kept": kept,
            "pairs_causal": causal,
            "reduction_percent": round(100 * (1 - kept / causal), 2),
        },
        "timings_s": {stage: round(seconds, 4) for stage, seconds in timings.items()},
        "toy": any(answer.doubts for answer in answers),
        "answers": [answer_data(answer) for answer in answers],
    }


def answer_data(answer: Answer) -> dict[str, Any]:
    """The part of `as_data` about one answer."""
    return {
        "question": answer.question,
        "answer": answer.text,
        "complete": answer.stopped,
        "doubts": list(answer.doubts),
        "chunks": [
            {"start_s": c.start_s, "end_s": c.end_s, "score": round(c.score, 6), "dense": c.dense}
            for c in answer.chunks
        ],
        "cache": {
            "tokens": answer.cache_tokens,
            "tokens_dense": answer.cache_tokens_dense,
            "ratio": round(answer.cache_ratio, 4),
        },
        "batch": answer.batch,
        "timings_s": {stage: round(seconds, 4) for stage, seconds in answer.timings.items()},
    }


def as_text(
    memory: VideoMemory, answers: Sequence[Answer], timings: dict[str, float], elapsed: float | None = None
) -> RenderableType:
    """`as_data` for a terminal: the answers, what was saved, which chunks were read, and the seconds of each stage.

    elapsed: seconds from the start of the program to the answers.
    """
    parts: list[RenderableType] = []
    if elapsed is not None:
        parts.append(Text(f"answer{'s' * (len(answers) > 1)} after {elapsed:.0f} s", style="dim"))
    for answer in answers:
        text = printable(answer.text) or "(nothing)"
        parts += [
            Text.assemble(("Q  ", "dim"), printable(answer.question)),
            Text.assemble(("A  ", "dim"), (text, "bold green"), "" if answer.stopped else " …"),
        ]
    parts += [Text(f"note: {printable(note)}", style="yellow") for note in memory.notes]
    parts += [Text(_saved(memory, answers)), Text()]
    if len(answers) == 1:
        parts += [_timeline(answers[0]), Text()]
    for number, answer in enumerate(answers, 1):
        parts.append(Text(_dense_spans(answer), style="dim"))
        # The answers of a batch share its timings.
        if number == len(answers) or answers[number].timings is not answer.timings:
            batch = f"batch of {answer.batch}: " if answer.batch > 1 else ""
            parts.append(Text(batch + _stages(answer.timings), style="dim"))
    fewer = 0 < memory.distinct_frames < memory.frames
    distinct = f" ({memory.distinct_frames} of them different)" if fewer else ""
    frames = f"{memory.frames} frames{distinct}, {memory.layout.length:,} tokens · {_stages(timings)}"
    return Group(*parts, Text(frames, style="dim"))


def _saved(memory: VideoMemory, answers: Sequence[Answer]) -> str:
    """One line: what chunk-based pre-filling and bi-level reading saved."""
    kept, causal = attention_pairs(memory.layout, memory.rule)
    line = f"saved: {100 * (1 - kept / causal):.0f} % of the attention ({kept:,} of {causal:,} pairs computed)"
    if not answers:
        return line
    loaded, dense = (sum(getattr(one, name) for one in answers) for name in ("cache_tokens", "cache_tokens_dense"))
    if loaded == dense:
        return f"{line}; the whole cache was loaded"
    count = (
        f"{loaded / len(answers):,.0f} of {dense / len(answers):,.0f} tokens loaded{' on average' * (len(answers) > 1)}"
    )
    return f"{line}, {100 * (1 - loaded / dense):.0f} % of the cache ({count})"


def _dense_spans(answer: Answer) -> str:
    """The seconds that were read dense, as 0–12, 36–60."""
    spans: list[list[float]] = []
    for chunk in answer.chunks:
        if chunk.dense and spans and spans[-1][1] == chunk.start_s:
            spans[-1][1] = chunk.end_s
        elif chunk.dense:
            spans.append([chunk.start_s, chunk.end_s])
    shown = ", ".join(f"{start:g}–{end:g}" for start, end in spans[:12]) + ", …" * (len(spans) > 12)
    return f"dense: {shown} s"


def _stages(timings: dict[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timings.items())


def _timeline(answer: Answer, max_chunks: int = 24) -> RenderableType:
    """One row per chunk, in time order; of a long video only the dense and the best-scored chunks."""
    best = sorted(sorted(answer.chunks, key=lambda c: (-c.dense, -c.score))[:max_chunks], key=lambda c: c.start_s)
    top = max((c.score for c in best), default=0) or 1.0
    table = Table.grid(padding=(0, 2))
    for chunk in best:
        bar = "█" * round(24 * max(chunk.score, 0) / top)
        style = "cyan" if chunk.dense else "dim"
        table.add_row(
            f"{chunk.start_s:8.1f} – {chunk.end_s:.1f} s",
            Text("dense" if chunk.dense else "sparse", style=style),
            f"{chunk.score:.3f}",
            Text(bar, style=style),
        )
    if left_out := len(answer.chunks) - len(best):
        table.add_row(f"… and {left_out} lower-scored sparse chunks")
    return table


def plan_data(
    plan: Plan, held: Mapping[str, str], name: str, device: DeviceSpec, fits: bool, advice: str
) -> dict[str, Any]:
    """One JSON-ready document of a plan for a device. held: how weights and cache are held, and where the dense level is."""
    kept, causal = plan.attention_pairs_kept, plan.attention_pairs_causal
    mixed, dense = plan.cache_bytes
    return {
        "groups": plan.layout.groups,
        "tokens": plan.layout.length,
        "question_tokens": plan.question_tokens,
        "attention_pairs_kept": kept,
        "attention_pairs_causal": causal,
        "reduction_percent": round(100 * (1 - kept / causal), 2),
        "cache_bytes_mixed": mixed,
        "cache_bytes_dense": dense,
        "cache_reduction_percent": round(100 * (1 - mixed / dense), 2),
        "flops": plan.flops,
        **held,
        "bytes": plan.bytes,
        "bytes_by_phase": plan.phases,
        "peak_phase": plan.peak_phase,
        "peak_bytes": plan.peak_bytes,
        "host_bytes": plan.host_bytes,
        "host_traffic_bytes": plan.host_traffic,
        "device": name,
        "device_memory_gb": device.memory_gb,
        "seconds": _known(plan.seconds(device)),
        "sent_bytes": plan.sent_bytes,
        "communication_seconds": _known(plan.communication_seconds(device)),
        "idle_percent": round(100 * plan.idle, 1),
        "fits": fits,
        "advice": advice,
    }


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds, 4)


def plan_text(document: dict[str, Any]) -> RenderableType:
    """`plan_data` for a terminal."""

    def saved(percent):
        return f"({percent} % saved)"

    def gb(count):
        return f"{count / 1e9:,.2f} GB"

    table = Table(box=None, show_header=False)
    table.add_row("model", printable(f"{document['model']}, {document['dtype']}"))
    tokens, groups, asked = document["tokens"], document["groups"], document["question_tokens"]
    table.add_row("tokens", f"{tokens:,} (prefix and {groups:,} groups of 4 frames), and {asked} of the question")
    kept, causal = document["attention_pairs_kept"], document["attention_pairs_causal"]
    table.add_row("attention pairs", f"{kept:,} of {causal:,} {saved(document['reduction_percent'])}")
    mixed, dense = gb(document["cache_bytes_mixed"]), gb(document["cache_bytes_dense"])
    table.add_row("cache loaded", f"{mixed} of {dense} {saved(document['cache_reduction_percent'])}")
    for part, flops in document["flops"].items():
        table.add_row(part.replace("_", " "), f"{flops / 1e12:,.1f} TFLOP")
    for part, count in document["bytes"].items():
        held = {"weights": document["weights"], "dense": document["cache"], "sparse": document["cache"]}.get(part)
        held = f"{held}, on the device" if part == "dense" and document["host_bytes"] else held
        table.add_row(f"{part} ({held})" if held else part, gb(count))
    for phase, parts in document["bytes_by_phase"].items():
        table.add_row(f"  during {phase}", gb(sum(parts.values())))
    place = "this machine" if document["device"] == "here" else document["device"]
    if document["devices"] > 1:
        table.add_row("mesh", document["mesh"])
        place = f"each of {document['devices']} × {place}"
    available = f"{document['device_memory_gb']} GB on {place}"
    table.add_row("peak", f"{gb(document['peak_bytes'])} of {available} ({document['peak_phase']})")
    if document["host_bytes"]:
        moved = f"{gb(document['host_traffic_bytes'])} are copied to the device while watching"
        table.add_row("dense level", f"{gb(document['host_bytes'])} in host memory; {moved}")
    if document["seconds"] is not None:
        copies = ", without the copies from host memory" if document["host_bytes"] else ""
        table.add_row("time, at least", f"{document['seconds']:,.2f} s at the device's peak rate{copies}")
    if any(document["sent_bytes"].values()) and document["communication_seconds"] is not None:
        along = ", ".join(f"{gb(count)} along {axis}" for axis, count in document["sent_bytes"].items() if count)
        table.add_row(
            "communication", f"{document['communication_seconds']:,.2f} s at least: each device sends {along}"
        )
    if document["idle_percent"]:
        table.add_row(
            "idle", f"{document['idle_percent']} % of the devices' time: the last strides are not shared evenly"
        )
    read = document["reading"]
    slower = ", longer than the device needs: more cores, or --frames-from keyframes" * read["longer_than_device"]
    cores = f"{read['cores']} core{'s' * (read['cores'] > 1)}"
    table.add_row("reading", f"about {read['seconds']:,.1f} s on {cores}, {read['film']}{slower}")
    verdict = (
        Text("fits" + ", with the dense level in host memory" * bool(document["host_bytes"]), "bold green")
        if document["fits"]
        else Text(f"does not fit: {document['advice']}", "bold red")
    )
    return Group(table, verdict)
