"""PyTorch's attention, timed in a process of its own: two frameworks in one would fight over memory and libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.bench import process
from experiments.bench.masks import Tokens

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
    cases: Sequence[Case],
    *,
    python: str | None,
    dtype: str,
    samples: int,
    seed: int,
    limit_s: float,
    natural: Tokens | None = None,
    streams: Tokens | None = None,
    window: int = 0,
) -> list[Outcome]:
    """Time the cases; those that fail or do not come to an end come back with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.npz"
        arrays = {
            f"{order}_{field}": array
            for order, tokens in (("natural", natural), ("streams", streams))
            if tokens is not None
            for field, array in tokens._asdict().items()
        }
        np.savez(rules, window=window, **arrays)
        request = {
            "cases": [asdict(case) for case in cases],
            "rules": str(rules),
            "dtype": dtype,
            "samples": samples,
            "seed": seed,
        }
        lines, why = process.run("torch_process", request, python=python, limit_s=limit_s)
    done = {line["name"]: Outcome(line["name"], line["seconds"] and tuple(line["seconds"]), line["error"], line["note"])
            for line in lines}  # fmt: skip
    return [done.get(case.name, Outcome(case.name, None, None, why or "no result")) for case in cases]
