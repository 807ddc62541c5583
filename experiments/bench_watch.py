"""Watching a video: seconds by stage, peak memory and how both grow with its length; pre-filling against PyTorch.

    python -m experiments.bench_watch --frames 256,600,2400                        # nano, this machine
    python -m experiments.bench_watch --frames 600,2400 --against torch --python VENV/bin/python
    python -m experiments.bench_watch --model real --frames 2048,10000 --out runs/bench       # an accelerator

Every length is watched in a process of its own (a peak of memory never falls), several times: the first run compiles,
the others are medians. The clock starts with resized uint8 frames in host memory. nano sees one frame of noise again
and again; the real sizes have random bfloat16 weights, made on the device, and frames that all differ.
Memory is what is resident, or on an accelerator what its allocator counts. "watching" is the peak of a run after the
first, above what was there before it: the cache and all activations, no weights and no compiling. With
--exact_memory the C library returns large blocks as soon as they are free; else it keeps tens of MiB for later, which
count, as they do for whoever runs it, and differ from run to run. Seconds are longer then.

--against torch: the language half alone, nano's weights in float32, given the same random visual tokens and ids: ours
by strides, PyTorch all at once through scaled_dot_product_attention under the boolean chunk mask. A process of each,
on the same cores; they take turns, a run of ours, a run of PyTorch's, so that other work on the machine falls on both.
PyTorch runs every layer whole, as the original does, ours stops at the last layer's keys and values;
--torch_stops_early lets both. PyTorch first reproduces golden logits, or it is not timed. Memory is counted above
weights and inputs (and ours above compiled programs); PyTorch's mask counts.

Exit code: 0, 1 if the two caches differ or the baseline does not reproduce the golden logits, 2 for flags that make
no sense and for sizes this machine cannot run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from absl import app, flags

from experiments.bench import against, process, watch_report
from experiments.parity.golden import GoldenError

_ROOT = Path(__file__).resolve().parents[1]
_FRAMES = flags.DEFINE_list("frames", ["256", "600", "2400"], "Lengths of videos, in frames at one a second.")
_MODEL = flags.DEFINE_enum("model", "nano", ["nano", "real"], "nano, or random weights of the released sizes.")
_OUT = flags.DEFINE_string("out", "runs/bench", "Folder for the results: JSON, a Markdown table, a plot.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON document alone on standard output.")
_LIMIT_S = flags.DEFINE_float("limit_s", 3000.0, "Seconds in all. What is done by then is kept.", lower_bound=0)
_SAMPLES = flags.DEFINE_integer("samples", 3, "Timed runs of a process, after the one that compiles.", lower_bound=1)
_EXACT = flags.DEFINE_boolean("exact_memory", False, "Freed blocks go back to the system at once (glibc only).")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all random inputs.")
_AGAINST = flags.DEFINE_enum("against", None, ["torch"], "What to compare pre-filling with.")
_PYTHON = flags.DEFINE_string("python", None, "An interpreter that has torch. Default: the one that runs this.")
_GOLDEN = flags.DEFINE_string(
    "golden", str(_ROOT / "tests" / "data" / "golden"), "What the baseline has to reproduce (see check_parity.py)."
)
_THREADS = flags.DEFINE_integer("threads", None, "Cores for each side of a comparison. Default: all.", lower_bound=1)
_VISUAL = flags.DEFINE_integer(
    "visual",
    None,
    "Visual tokens per group in a comparison. Default: nano's 9; the released model has 144.",
    lower_bound=1,
)
_EARLY = flags.DEFINE_boolean(
    "torch_stops_early", False, "Let PyTorch too stop at the last layer's keys and values, which is all that is needed."
)
_TURNS = flags.DEFINE_integer("turns", 3, "Pairs of processes of a comparison.", lower_bound=1)

_TOO_LARGE = (
    "--model real: 15.6 GB of weights and a petaflop or more for every 800 frames are too much for a CPU; "
    "use --model nano, or a machine with an accelerator"
)


class UsageError(Exception):
    """Flags that make no sense, or ask for what this machine cannot do; one line."""


def tell(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def lengths() -> list[int]:
    try:
        found = [int(item) for item in _FRAMES.value]
    except ValueError as error:
        raise UsageError(f"--frames: {error}") from error
    if not found or min(found) < 1:
        raise UsageError("--frames takes numbers of at least 1, separated by commas")
    return sorted(set(found))


def describe(left_s: float) -> dict:
    """The machine and its ceilings, asked of a process, so that this one never holds an accelerator."""
    lines, why = process.run("watch_process", {"task": "describe", "seed": _SEED.value}, limit_s=left_s)
    if not lines:
        raise UsageError(f"JAX does not run: {why}")
    if _MODEL.value == "real" and not lines[0]["accelerator"]:
        raise UsageError(_TOO_LARGE)
    return lines[0]


def watch(frames: int, left_s: float) -> dict:
    """Everything known of one length; with a "note" where it was cut short."""
    tell(f"{frames} frames")

    def heard(line):
        return tell(f"{frames} frames, {line['progress']}") if "progress" in line else None

    request = {"task": "watch", "frames": frames, "model": _MODEL.value, "samples": _SAMPLES.value, "seed": _SEED.value}
    lines, why = (
        ([], "not begun: --limit_s is used up")
        if left_s <= 0
        else process.run("watch_process", request, limit_s=left_s, heard=heard)
    )
    runs = [line["run"] for line in lines if "run" in line]
    about = next((line for line in lines if "flops" in line), {})
    return {"frames": frames, **about, "runs": runs, "note": why}


def measure(document: watch_report.Document, frames: list[int]) -> None:
    """Fill the document, writing its files after every length."""
    end = time.monotonic() + _LIMIT_S.value

    def left_s():
        return end - time.monotonic()

    document.start(describe(left_s()))
    for length in frames:
        document.add_watched(watch(length, left_s()))
    if _AGAINST.value:
        setting = against.Setting(
            _PYTHON.value,
            Path(_GOLDEN.value),
            _THREADS.value,
            _TURNS.value,
            _SAMPLES.value,
            _SEED.value,
            _VISUAL.value,
            _EARLY.value,
        )
        for length in frames:
            document.add_compared(against.bench(length, setting, left_s, tell))
    document.complete = True


def main(arguments: list[str]) -> None:
    used = {name: flags.FLAGS[name].value for name in flags.FLAGS if not flags.FLAGS[name].using_default_value}
    document = watch_report.Document(Path(_OUT.value), used, quiet=_JSON.value)
    # Whoever stops the run gets what has been measured, drawn.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if arguments[1:]:
            raise UsageError(f"what is {arguments[1]}? Lengths are given as --frames 256,600")
        if _EXACT.value:
            os.environ |= process.RETURN_BLOCKS
        try:
            measure(document, lengths())
        finally:
            document.finish()
    except (UsageError, GoldenError, OSError) as error:
        print(f"bench_watch: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)
    if _JSON.value:
        print(json.dumps(document.as_json(), indent=1))
    if document.wrong:
        print(f"bench_watch: {document.wrong}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
