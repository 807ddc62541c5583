"""Output of the command line: plain data for --json, rich text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
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
            "groups": memory.layout.groups,
            "end_s": memory.end_s,
            "tokens": memory.layout.length,
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
        "answers": [answer_data(answer) for answer in answers],
    }


def answer_data(answer: Answer) -> dict[str, Any]:
    """The part of it about one answer."""
    return {
        "question": answer.question,
        "answer": answer.text,
        "complete": answer.stopped,
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
    """The same for a terminal. elapsed: seconds from the start of the program to the answers."""
    data = as_data(memory, answers, timings)
    parts: list[RenderableType] = []
    if elapsed is not None:
        parts.append(Text(f"answer{'s' * (len(answers) > 1)} after {elapsed:.0f} s", style="dim"))
    for number, answer in enumerate(answers, 1):
        parts += [
            Text.assemble(("Q  ", "dim"), printable(answer.question)),
            Text.assemble(
                ("A  ", "dim"), (printable(answer.text) or "(nothing)", "bold green"), "" if answer.stopped else " …"
            ),
            _timeline(answer),
            Text(
                f"cache loaded {answer.cache_tokens:,} of {answer.cache_tokens_dense:,} tokens "
                f"({100 * (1 - answer.cache_ratio):.0f} % saved)",
                style="dim",
            ),
        ]
        # The answers of a batch share its timings.
        if number == len(answers) or answers[number].timings is not answer.timings:
            batch = f"batch of {answer.batch}: " if answer.batch > 1 else ""
            parts.append(Text(batch + _stages(answer.timings), style="dim"))
        parts.append(Text())
    attention = data["attention"]
    parts.append(
        Text(
            f"{memory.frames} frames, {memory.layout.length:,} tokens · attention {attention['pairs_kept']:,} of "
            f"{attention['pairs_causal']:,} pairs ({attention['reduction_percent']:.0f} % saved) · {_stages(timings)}",
            style="dim",
        )
    )
    return Group(*parts)


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


def plan_data(plan: Plan, weights: str, name: str, device: DeviceSpec, fits: bool, advice: str) -> dict[str, Any]:
    """One JSON-ready document of a plan for a device."""
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
        "weights": weights,
        "bytes": plan.bytes,
        "bytes_by_phase": plan.phases,
        "peak_phase": plan.peak_phase,
        "peak_bytes": plan.peak_bytes,
        "device": name,
        "device_memory_gb": device.memory_gb,
        "seconds": round(plan.seconds(device), 4),
        "fits": fits,
        "advice": advice,
    }


def plan_text(document: dict[str, Any]) -> RenderableType:
    """The same for a terminal."""

    def saved(percent):
        return f"({percent} % saved)"

    def gb(count):
        return f"{count / 1e9:,.2f} GB"

    table = Table(box=None, show_header=False)
    tokens, groups, asked = document["tokens"], document["groups"], document["question_tokens"]
    table.add_row("tokens", f"{tokens:,} of {groups:,} groups of 4 frames, {asked} of the question")
    kept, causal = document["attention_pairs_kept"], document["attention_pairs_causal"]
    table.add_row("attention pairs", f"{kept:,} of {causal:,} {saved(document['reduction_percent'])}")
    mixed, dense = gb(document["cache_bytes_mixed"]), gb(document["cache_bytes_dense"])
    table.add_row("cache loaded", f"{mixed} of {dense} {saved(document['cache_reduction_percent'])}")
    for part, flops in document["flops"].items():
        table.add_row(part.replace("_", " "), f"{flops / 1e12:,.1f} TFLOP")
    for part, count in document["bytes"].items():
        table.add_row(f"weights ({document['weights']})" if part == "weights" else part, gb(count))
    for phase, parts in document["bytes_by_phase"].items():
        table.add_row(f"  during {phase}", gb(sum(parts.values())))
    available = f"{document['device_memory_gb']} GB on {document['device']}"
    table.add_row("peak", f"{gb(document['peak_bytes'])} of {available} ({document['peak_phase']})")
    table.add_row("floor", f"{document['seconds']:,.2f} s")
    verdict = (
        Text("fits", "bold green") if document["fits"] else Text(f"does not fit: {document['advice']}", "bold red")
    )
    return Group(table, verdict)
