"""Pre-filling against PyTorch: the same weights, visual tokens and rule; time and memory of both.

Ours feeds strides with the cache as carry; PyTorch feeds everything at once under the boolean mask [L, L] of
`vxl2_jax.layout.natural_mask`. Each has a process of its own on the same cores, and their runs alternate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.bench import workers
from experiments.bench.arguments import positive
from experiments.bench.machine import Session
from experiments.bench.measure import Timing, evenly
from experiments.bench.report import BASELINE, Row, joined
from experiments.parity.golden import Archive, layout_of, read_json
from experiments.parity.report import FEATURES, LOGITS, Report
from vxl2_jax import planning
from vxl2_jax.checkpoints import fetch
from vxl2_jax.layout import Layout, PrefillRule, natural_mask

OURS, TORCH = "ours, by strides", "PyTorch SDPA, boolean mask"
FASTER, SMALLER = 2.0, 0.5  # targets from 600 frames on: times faster, share of the peak memory
TOLERANCE = 1e-4  # relative difference of the two caches
_MOST_TOKENS = 25_000  # a mask of more takes gigabytes, and minutes a run
_REST_S = 0.05  # between runs, in which busy-waiting threads of the other side go to sleep
_GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "data" / "golden"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("comparison of pre-filling").add_argument
    add("--against", choices=["torch"], help="what to compare with")
    add("--golden", type=Path, default=_GOLDEN, metavar="DIR", help="golden tensors that PyTorch has to reproduce")
    add("--threads", type=positive, metavar="N", help="cores of each side (default: all)")
    add("--visual", type=positive, metavar="N", help="visual tokens per group (default: nano's 9; released: 144)")
    add("--torch_stops_early", action="store_true", help="PyTorch, too, stops at the last layer's keys and values")
    add("--turns", type=positive, default=3, metavar="N", help="pairs of processes (3)")


def golden_runs(directory: Path) -> dict[str, np.ndarray]:
    """Per run with golden logits: embeddings [L, E], packed mask, rows, logits of these rows, tolerance.

    Raises parity.golden.GoldenError for a directory that is not of the format.
    """
    placeholder = read_json(directory / "tiny_checkpoint" / "special_tokens.json")["visual_placeholder"]
    dense, chunked = (Archive(directory / f"prefill_{kind}.npz") for kind in ("dense", "chunked"))
    runs = {}
    for case in (found[1] for found in dense.matching(r"(.+)_geom")):
        ids, (_, visual, start, stop) = dense[f"{case}_ids"], dense[f"{case}_geom"].tolist()
        layout = layout_of(ids[start:stop], start, placeholder, visual)
        rows = dense[f"{case}_logit_rows"] if f"{case}_logit_rows" in dense else np.arange(len(ids))
        settings = [(PrefillRule(prev_blocks=None), dense, f"{case}_logits")]
        for found in chunked.matching(rf"{case}_b(\d+)_p(\d+)_logits"):
            settings.append((PrefillRule(int(found[1]), int(found[2])), chunked, found[0]))
        for rule, archive, key in settings:
            if key not in archive:
                continue
            # The original's angles are float32 products, off by up to position · 2⁻²⁴ rad.
            widened = max(1.0, len(ids) * 2.0**-24 / FEATURES)
            runs |= {
                f"{key}_embeds": dense[f"{case}_inputs_embeds"],
                f"{key}_rows": rows,
                f"{key}_logits": archive[key],
                f"{key}_mask": np.packbits(natural_mask(layout, rule, len(ids) - layout.length), axis=1),
                f"{key}_tolerance": np.float64(Report().allowed(archive[key], LOGITS) * widened),
            }
    return runs


def video_layout(frames: int, visual: int | None) -> Layout:
    """nano's layout of a video, with `visual` tokens per group where given."""
    layout = planning.layout_for(*planning.model_of("nano"), frames, 1.0)
    return Layout(layout.prefix, layout.timestamp_lengths, visual or layout.visual)


def inputs(layout: Layout, seed: int) -> dict[str, np.ndarray]:
    """What both sides read: layout, random ids and visual tokens [G, V, E], positions of the streams, packed mask."""
    lm, rng = planning.model_of("nano")[0].language, np.random.default_rng(seed)
    return {
        "prefix": np.int32(layout.prefix),
        "timestamp_lengths": np.asarray(layout.timestamp_lengths),
        "ids": rng.integers(0, lm.vocabulary, layout.global_length).astype(np.int32),
        "visual": rng.normal(size=(layout.groups, layout.visual, lm.width)).astype(np.float32),
        "visual_positions": layout.visual_positions(),
        "global_positions": layout.global_positions(),
        "mask": np.packbits(natural_mask(layout, PrefillRule()), axis=1),
        "compared": evenly(layout.length, 256),  # positions whose keys and values are compared
    }


def least_flops(layout: Layout, stops_early: bool) -> dict[str, int]:
    """FLOPs of each side: of visible pairs, or of all entries of the mask."""
    config, _ = planning.model_of("nano")
    lm, flops = config.language, planning.plan(config, layout, PrefillRule(), question_tokens=0, compression=1).flops
    pairs = 4 * lm.heads * lm.head_width * layout.length**2
    # What ours leaves out of the last layer: all but its keys and values.
    rest = layout.length * (4 * lm.width * lm.heads * lm.head_width + 6 * lm.width * lm.mlp) + pairs
    torch = flops["language_linear"] + pairs * (lm.layers - 1) + (0 if stops_early else rest)
    return {OURS: flops["language_linear"] + flops["attention"], TORCH: torch}


class Side:
    """One side of a comparison: its worker and replies. `failure`: why it no longer runs."""

    def __init__(self, name: str, module: str | Path, python: str | None = None):
        self.name, self.failure, self.replies = name, "", []
        self._module, self._python, self._worker, self._lines = module, python, None, iter(())

    def start(self, stack: ExitStack, request: dict, limit_s: float, env: dict[str, str]) -> None:
        """Start a worker and wait until it has compiled and run once."""
        self._worker = None
        if self.failure:
            return
        if limit_s <= 0:
            self.failure = "--limit_s is used up"
            return
        try:
            worker = workers.Worker(self._module, limit_s=limit_s, python=self._python, env=env)
        except OSError as error:
            self.failure = str(error)
            return
        self._worker = stack.enter_context(worker)
        self._lines = worker.replies()
        worker.send(request)
        self._read_until("peak_bytes")

    def run_once(self) -> None:
        if self._worker and not self.failure:
            time.sleep(_REST_S)
            self._worker.send({})
            self._read_until("seconds")

    def finish(self) -> None:
        """Let the worker write its cache and end."""
        if self._worker and not self.failure:
            self._worker.close()
            self._read_until(None)

    def _read_until(self, key: str | None) -> None:
        """Read replies until one has `key`, or to the end."""
        for line in self._lines:
            self.replies.append(line)
            if key in line:
                return
        early = "the worker ended early" if key else ""
        self.failure = workers.refusal(self.replies) or self._worker.failure() or early


def run(session: Session, frames: int, env: dict[str, str]) -> None:
    """Add the rows of one length. Where one side does not run its note says why, and the other's is measured still."""
    args, report, layout = session.args, session.report, video_layout(frames, session.args.visual)
    sides = {OURS: Side(OURS, workers.JAX), TORCH: Side(TORCH, workers.TORCH, args.torch_python)}
    case, caches = f"{frames} frames, {layout.length} tokens", {}
    if layout.length > _MOST_TOKENS:
        size = f"{layout.length**2 / 1e9:.1f} GB, and as numbers four times that"
        report.add(Row(case, TORCH, "pre-fill", note=f"not run: the mask of {layout.length} tokens takes {size}"))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "golden.npz", **golden_runs(args.golden))
        np.savez(folder / "case.npz", **inputs(layout, args.seed))
        request = {
            "task": "prefill",
            "threads": args.threads,
            "case": str(folder / "case.npz"),
            "checkpoint": str(fetch.NANO),
            "golden_checkpoint": str(args.golden / "tiny_checkpoint"),
            "golden_runs": str(folder / "golden.npz"),
            "last_keys_only": args.torch_stops_early,
        }
        outputs = {name: folder / f"cache{number}.npy" for number, name in enumerate(sides)}
        for turn in range(args.turns):
            print(f"{case}, pre-fill: turn {turn + 1} of {args.turns}", file=sys.stderr, flush=True)
            with ExitStack() as stack:
                for side in sides.values():
                    side.start(stack, {**request, "out": str(outputs[side.name])}, report.left_s, env)
                for _ in range(args.samples):
                    for side in sides.values():
                        side.run_once()
                for side in sides.values():
                    side.finish()
        caches = {name: np.load(path) for name, path in outputs.items() if path.exists()}
    flops = least_flops(layout, args.torch_stops_early)
    found = {side.name: side_row(side, Row(case, side.name, "pre-fill", flops[side.name], frames=frames))
             for side in sides.values()}  # fmt: skip
    if golden := next((line["golden"] for line in sides[TORCH].replies if "golden" in line), None):
        note = f"worst difference over its tolerance, {golden['runs']} runs"
        report.add(Row(case, TORCH, "golden logits", error=golden["worst"], tolerance=1, note=note))
    report.add(replace(found[TORCH], kind=BASELINE))
    compared = len(caches) == 2 and all(row.timing for row in found.values())
    report.add(compare(found[OURS], found[TORCH], caches) if compared else found[OURS])


def side_row(side: Side, row: Row) -> Row:
    """The row of one side from its worker's replies."""
    times = [line for line in side.replies if "seconds" in line]
    memory = [line for line in side.replies if "peak_bytes" in line]
    if not times:
        return replace(row, note=f"not run: {side.failure}")
    loaded, peak = (median(line[key] for line in memory) for key in ("loaded_bytes", "peak_bytes"))
    core_s = median(line["core_seconds"] for line in times)
    note = joined(
        f"{core_s:.3f} core-seconds, {memory[0]['threads']} cores, {memory[0]['about']}",
        f"loaded {loaded / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB",
        side.failure,
    )
    return replace(
        row,
        timing=Timing(tuple(line["seconds"] for line in times)),
        memory_bytes=peak - loaded + memory[0].get("working_bytes", 0),
        note=note,
        details={"core_s": core_s, "loaded_bytes": loaded, "peak_bytes": peak, "threads": memory[0]["threads"]},
    )


def compare(ours: Row, torch: Row, caches: dict[str, np.ndarray]) -> Row:
    """Our row with the ratios to PyTorch's, whether they reach the targets, and the difference of the caches."""
    faster, share = torch.timing.seconds / ours.timing.seconds, ours.memory_bytes / torch.memory_bytes
    pairs = [b / a for a, b in zip(ours.timing.rounds, torch.timing.rounds, strict=False)]  # of alternating runs
    low, high = np.quantile(pairs, [0.25, 0.75]).tolist()
    core_s = torch.details["core_s"] / ours.details["core_s"]
    difference = float(np.linalg.norm(caches[OURS] - caches[TORCH]) / np.linalg.norm(caches[TORCH]))
    ratios: dict[str, Any] = {"times_faster": faster, "pairs": [low, high], "times_fewer_core_s": core_s}
    ratios |= {"memory_share": share, "fast_enough": faster >= FASTER, "small_enough": share <= SMALLER}
    verdict = {True: "reached", False: "missed"}
    note = joined(
        f"{faster:.2f} × as fast as PyTorch (target {FASTER:g}: {verdict[faster >= FASTER]}; half of {len(pairs)} pairs "
        f"of runs between {low:.2f} and {high:.2f}), {core_s:.2f} × by core-seconds, which other load affects less",
        f"{share:.2f} of its peak memory (target {SMALLER:g}: {verdict[share <= SMALLER]})",
        f"PyTorch has {torch.flops / ours.flops:.2f} × the operations",
        ours.note,
    )
    return replace(ours, error=difference, tolerance=TOLERANCE, note=note, details={**ours.details, **ratios})
