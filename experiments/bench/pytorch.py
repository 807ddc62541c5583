"""PyTorch's attention, timed in a process of its own: two frameworks in one would fight over memory and libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.masks import Tokens

NAMES = ("flex", "flex_streams", "flex_tuned", "sdpa")
WHAT = {
    "flex": "torch FlexAttention, the same rule, natural order",
    "flex_streams": "torch FlexAttention, the same rule, streams apart as we store them",
    "flex_tuned": "torch FlexAttention, streams apart, max-autotune",
    "sdpa": "torch scaled_dot_product_attention",
}


@dataclass(frozen=True)
class Case:
    """One measurement: a name of NAMES and its shapes. FlexAttention takes a rule, SDPA is dense or causal."""

    name: str
    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    causal: bool = False


@dataclass(frozen=True)
class Outcome:
    """Seconds of the same work twice, relative error; or, with no seconds, the reason in `note`."""

    name: str
    seconds: tuple[float, float] | None
    error: float | None
    note: str


def measure(
    cases: Sequence[Case], *, python: str | None, dtype: str, samples: int, seed: int, limit_s: float,
    natural: Tokens | None = None, streams: Tokens | None = None, window: int = 0,
) -> list[Outcome]:
    """Time the cases; those that fail or do not come to an end come back with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.npz"
        arrays = {
            f"{order}_{field}": array
            for order, tokens in (("natural", natural), ("streams", streams)) if tokens is not None
            for field, array in tokens._asdict().items()
        }
        np.savez(rules, window=window, **arrays)
        request = {
            "cases": [asdict(case) for case in cases], "rules": str(rules),
            "dtype": dtype, "samples": samples, "seed": seed,
        }
        lines, why = _run(python or sys.executable, json.dumps(request), limit_s)
    done = {line["name"]: Outcome(line["name"], line["seconds"] and tuple(line["seconds"]), line["error"], line["note"])
            for line in lines}  # fmt: skip
    return [done.get(case.name, Outcome(case.name, None, None, why)) for case in cases]


def _run(python: str, request: str, limit_s: float) -> tuple[list[dict], str]:
    """The lines that the process printed, and why there are no more."""
    command = [python, str(Path(__file__).with_name("torch_process.py"))]
    try:
        ended = subprocess.run(command, input=request, capture_output=True, text=True, timeout=max(limit_s, 1.0))
        out, why = ended.stdout, ended.stderr.strip().splitlines()[-1:] or ["no result"]
        why = f"its process ended with code {ended.returncode}: {why[0]}"
    except subprocess.TimeoutExpired as expired:
        out = (expired.stdout or b"").decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        why = f"not done within {limit_s:.0f} s"
    except OSError as error:
        return [], f"{python} does not run ({error.strerror})"
    return [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")], why
