"""Times PyTorch's attention: one JSON request on standard input, one JSON line per case printed (see pytorch.py)."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.masks import Tokens, allowed

try:
    import torch
except ImportError:
    torch = None

_CACHE = 256 * 2**20
_PATIENCE_S = 2.0
_SAMPLED = 16


def inputs(case: dict, dtype: Any, device: str) -> tuple[list[tuple], list[tuple]]:
    """Random sets of (q, k, v) [B, heads, N, D] to be taken in turns, more than a cache holds; and a fresh one."""

    def normal(heads, count):
        return torch.randn(case["batch"], heads, count, case["width"], dtype=dtype, device=device)

    def one():
        return (
            normal(case["heads"], case["queries"]),
            *(normal(case["kv_heads"], case["keys"]) for _ in "kv"),
        )

    first = one()
    nbytes = sum(a.numel() * a.element_size() for a in first)
    more = max(0, min(8, -(-_CACHE // nbytes)) - 1) if device == "cuda" else 0
    return [first, *(one() for _ in range(more))], [one()]


def seconds(call: Callable[..., Any], sets: list[tuple], samples: int, device: str) -> float:
    """Median seconds of one call."""

    def sample() -> float:
        if device == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            for one in sets:
                call(*one)
            stop.record()
            torch.cuda.synchronize()
            return start.elapsed_time(stop) / 1e3
        begin = time.perf_counter()
        for one in sets:
            call(*one)
        return time.perf_counter() - begin

    once = sample()
    return statistics.median(sample() for _ in range(max(1, min(samples, int(_PATIENCE_S / once))))) / len(sets)


def relative_error(out: Any, q: Any, k: Any, v: Any, sees: Callable[[Any, Any], Any]) -> float:
    """Of a sample of queries of the first sequence, against float64. `sees`: (queries [n, 1], keys [1, S]) → bool."""
    count, repeats = q.shape[2], q.shape[1] // k.shape[1]
    rows = torch.unique(torch.linspace(0, count - 1, min(_SAMPLED, count), device=q.device).round().long())
    seen = sees(rows[:, None], torch.arange(k.shape[2], device=q.device)[None])
    difference = size = 0.0
    for head in range(q.shape[1]):
        keys, values = k[0, head // repeats].double(), v[0, head // repeats].double()
        logits = q[0, head, rows].double() @ keys.T / math.sqrt(q.shape[-1])
        truth = torch.softmax(logits.masked_fill(~seen, -math.inf), dim=-1) @ values
        difference += ((out[0, head, rows].double() - truth) ** 2).sum().item()
        size += (truth**2).sum().item()
    return math.sqrt(difference / size)


def flex(name: str, case: dict, rules: Any, device: str) -> tuple[Callable, Callable, str]:
    """(call, what queries see, a remark). The block mask is made here, outside the timing."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    order, window = "natural" if name == "flex" else "streams", int(rules["window"])
    tokens = Tokens(*(torch.as_tensor(rules[f"{order}_{field}"], device=device) for field in Tokens._fields))

    def mask_mod(b, h, q, k):
        return allowed(q, k, tokens, window)

    shape = (None, None, case["queries"], case["keys"])
    mask = create_block_mask(mask_mod, *shape, device=device, _compile=device == "cuda")
    mode = {"mode": "max-autotune-no-cudagraphs"} if name == "flex_tuned" else {}
    compiled = torch.compile(flex_attention, dynamic=False, **mode)

    def call(q, k, v):
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    remark = f"{100 - float(mask.sparsity()):.1f} % of blocks of 128 are visited"
    return call, lambda q, k: allowed(q, k, tokens, window), remark


def sdpa(case: dict) -> tuple[Callable, Callable, str]:
    attention = torch.nn.functional.scaled_dot_product_attention
    causal, grouped = case["causal"], case["heads"] != case["kv_heads"]

    def call(q, k, v):
        return attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    def sees(q, k):
        return (k <= q) if causal else (k >= 0).expand(q.shape[0], -1)

    return call, sees, "causal" if causal else ""


def measured(case: dict, rules: Any, dtype: Any, samples: int, device: str) -> dict:
    name = case["name"]
    call, sees, note = sdpa(case) if name == "sdpa" else flex(name, case, rules, device)
    sets, [fresh] = inputs(case, dtype, device)
    error = relative_error(call(*fresh), *fresh, sees)
    for one in sets:
        call(*one)
    return {"name": name, "seconds": [seconds(call, sets, samples, device) for _ in "ab"], "error": error, "note": note}


def main() -> None:
    request = json.load(sys.stdin)

    def say(**line):
        return print(json.dumps(line), flush=True)

    if torch is None:
        for case in request["cases"]:
            say(name=case["name"], seconds=None, error=None, note="torch is not installed")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = f"torch {torch.__version__} on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}"
    torch.manual_seed(request["seed"])
    rules = np.load(request["rules"])
    for case in request["cases"]:
        try:
            with torch.inference_mode():
                line = measured(case, rules, getattr(torch, request["dtype"]), request["samples"], device)
            say(**{**line, "note": "; ".join(part for part in (line["note"], about) if part)})
        except Exception as error:  # whatever it is, the next case may run
            reason = str(error).strip().splitlines() or [""]
            note = f"{type(error).__name__}: {reason[0][:160]} ({about})"
            say(name=case["name"], seconds=None, error=None, note=note)
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
