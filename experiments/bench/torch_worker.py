"""Tasks of a PyTorch process of its own: time attention, pre-fill a case (see workers.py).

Needs torch, numpy and safetensors, neither JAX nor this project's library.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from experiments.bench import workers
from experiments.bench.masks import Tokens, visible
from experiments.bench.workers import reply, serve

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
except ImportError as error:
    reply(refused=f"{error.name} is not installed for {sys.executable}")
    sys.exit(0)

_CACHE_BYTES = 256 * 2**20  # more than any device's cache
_BUDGET_S = 2.0  # of the samples of one round
_SAMPLED = 16  # queries whose errors are measured


def attention(request: dict, _: Iterable[dict]) -> None:
    """Time FlexAttention or SDPA. Replies with seconds of two rounds, the relative error, and a note."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = f"torch {torch.__version__} on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}"
    torch.manual_seed(request["seed"])
    dtype = getattr(torch, request["dtype"])

    def draw() -> list[torch.Tensor]:
        counts = (("heads", "queries"), ("kv_heads", "keys"), ("kv_heads", "keys"))
        shapes = [(request["batch"], request[heads], request[count], request["width"]) for heads, count in counts]
        return [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]

    try:
        with torch.inference_mode():
            call, sees, note = _sdpa(request) if request["name"] == "sdpa" else _flex(request, device)
            sets = [draw()]
            nbytes = sum(a.numel() * a.element_size() for a in sets[0])
            if device == "cuda":  # sets in turn, so that none stays cached
                sets += [draw() for _ in range(min(8, -(-_CACHE_BYTES // nbytes)) - 1)]
            fresh = draw()
            error = _relative_error(call(*fresh), *fresh, sees)
            for one in sets:
                call(*one)
            seconds = [_seconds(call, sets, request["samples"], device) for _ in range(2)]
    except Exception as error:  # whatever it is, it is why this is not measured
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        reply(refused=f"{type(error).__name__}: {reason} ({about})")
        return
    reply(seconds=seconds, error=error, note="; ".join(filter(None, (note, about))))


def _sdpa(request: dict) -> tuple[Callable, Callable, str]:
    """(call, which keys queries see, a note)."""
    causal, grouped = request["causal"], request["heads"] != request["kv_heads"]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return call, lambda q, k: (k <= q) if causal else (k >= 0).expand(q.shape[0], -1), "causal" if causal else ""


def _flex(request: dict, device: str) -> tuple[Callable, Callable, str]:
    """The same of FlexAttention. The block mask is made here, outside the timing."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rule = np.load(request["rule"])
    tokens = Tokens(*(torch.as_tensor(rule[field], device=device) for field in Tokens._fields))
    window = int(rule["window"])
    shape = (None, None, request["queries"], request["keys"])
    compile_mask = {"device": device, "_compile": device == "cuda"}
    mask = create_block_mask(lambda b, h, q, k: visible(q, k, tokens, window), *shape, **compile_mask)
    mode = {"mode": "max-autotune-no-cudagraphs"} if request["name"] == "flex_tuned" else {}
    compiled = torch.compile(flex_attention, dynamic=False, **mode)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    note = f"{100 - float(mask.sparsity()):.1f} % of blocks of 128 are visited"
    return call, lambda q, k: visible(q, k, tokens, window), note


def _seconds(call: Callable, sets: list[list[torch.Tensor]], samples: int, device: str) -> float:
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
    return statistics.median(sample() for _ in range(max(1, min(samples, int(_BUDGET_S / once))))) / len(sets)


def _relative_error(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: Callable) -> float:
    """Of sampled queries of the first sequence, against float64. sees: (queries [n, 1], keys [1, S]) → bool."""
    count, repeats = q.shape[2], q.shape[1] // k.shape[1]
    rows = torch.unique(torch.linspace(0, count - 1, min(_SAMPLED, count), device=q.device).round().long())
    seen = sees(rows[:, None], torch.arange(k.shape[2], device=q.device)[None])
    difference = size = 0.0
    for head in range(q.shape[1]):
        keys, values = k[0, head // repeats].double(), v[0, head // repeats].double()
        logits = q[0, head, rows].double() @ keys.T / math.sqrt(q.shape[-1])
        expected = torch.softmax(logits.masked_fill(~seen, -math.inf), dim=-1) @ values
        difference += ((out[0, head, rows].double() - expected) ** 2).sum().item()
        size += (expected**2).sum().item()
    return math.sqrt(difference / size)


class Qwen2:
    """Qwen2.5 in float32, from a checkpoint directory of the original's layout."""

    def __init__(self, directory: str):
        text = json.loads((Path(directory) / "config.json").read_text())
        stored = load_file(f"{directory}/model.safetensors")
        weights = {key: tensor.float().contiguous() for key, tensor in stored.items()}
        self.heads = text["num_attention_heads"]
        self.kv_heads = text.get("num_key_value_heads", self.heads)
        self.width = text.get("head_dim") or text["hidden_size"] // self.heads
        self.eps, self.theta = text["rms_norm_eps"], float(text["rope_theta"])
        self.embed, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self.head = self.embed if text.get("tie_word_embeddings") else weights["lm_head.weight"]
        prefixes = [f"model.layers.{layer}." for layer in range(text["num_hidden_layers"])]
        self.layers = [
            {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
            for prefix in prefixes
        ]

    def run(
        self, x: torch.Tensor, mask: torch.Tensor, *, last_keys_only: bool
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """x [L, E], mask bool [L, L] → the residual stream, and (rotated keys, values) [K, L, D] of every layer.

        last_keys_only: the last layer stops at its keys and values, all that pre-filling needs.
        """
        length, half, caches = len(x), self.width // 2, []
        frequency = self.theta ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        cos, sin = (torch.cat([f(angles)] * 2, dim=-1).float() for f in (torch.cos, torch.sin))

        def rotate(t: torch.Tensor) -> torch.Tensor:
            return t * cos + torch.cat([-t[..., half:], t[..., :half]], dim=-1) * sin

        for number, layer in enumerate(self.layers):

            def linear(h: torch.Tensor, name: str, layer: dict = layer) -> torch.Tensor:
                return F.linear(h, layer[f"{name}.weight"], layer.get(f"{name}.bias"))

            def heads(h: torch.Tensor, name: str, linear: Callable = linear) -> torch.Tensor:
                return linear(h, f"self_attn.{name}_proj").view(length, -1, self.width).transpose(0, 1)

            h = self._norm(x, layer["input_layernorm.weight"])
            k, v = rotate(heads(h, "k")), heads(h, "v")
            caches.append((k, v))
            if last_keys_only and number == len(self.layers) - 1:
                break
            q, grouped = rotate(heads(h, "q")), self.heads != self.kv_heads
            mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=grouped)[0]
            x = x + linear(mixed.transpose(0, 1).reshape(length, -1), "self_attn.o_proj")
            h = self._norm(x, layer["post_attention_layernorm.weight"])
            x = x + linear(F.silu(linear(h, "mlp.gate_proj")) * linear(h, "mlp.up_proj"), "mlp.down_proj")
        return x, caches

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self._norm(x, self.norm), self.head)

    def _norm(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], scale, self.eps)


def _unpacked(bits: np.ndarray) -> torch.Tensor:
    """A mask bool [L, L] from rows packed to bytes."""
    return torch.from_numpy(np.unpackbits(bits, axis=1, count=len(bits)).astype(bool))


def _check_golden(request: dict) -> dict:
    """The number of runs with golden logits, and the worst difference in units of the tolerance."""
    model, golden, worst = Qwen2(request["golden_checkpoint"]), np.load(request["golden_runs"]), 0.0
    names = [key.removesuffix("_embeds") for key in golden if key.endswith("_embeds")]
    for name in names:
        embeds, mask = torch.from_numpy(golden[f"{name}_embeds"]), _unpacked(golden[f"{name}_mask"])
        x, _ = model.run(embeds, mask, last_keys_only=False)
        logits = model.logits(x[torch.from_numpy(golden[f"{name}_rows"])]).numpy()
        difference = np.abs(logits - golden[f"{name}_logits"]).max() / golden[f"{name}_tolerance"]
        worst = max(worst, float(difference)) if np.isfinite(difference) else math.inf
    return {"runs": len(names), "worst": worst}


def prefill(request: dict, more: Iterable[dict]) -> None:
    """Pre-fill a case all at once under the boolean chunk mask, once more per request.

    The golden logits are reproduced first, or nothing is timed.
    """
    threads = workers.limit_cores(request["threads"])
    torch.set_num_threads(threads)
    with torch.inference_mode():
        golden = _check_golden(request)
        reply(golden=golden)
        if not golden["runs"] or golden["worst"] > 1:
            reply(refused="the PyTorch baseline does not reproduce the golden logits: not timed")
            return
        model, case = Qwen2(request["checkpoint"]), np.load(request["case"])
        mask, visual = _unpacked(case["mask"]), torch.from_numpy(case["visual"]).flatten(0, 1)
        ids = torch.from_numpy(case["ids"]).long()
        positions = [torch.from_numpy(case[name]).long() for name in ("visual_positions", "global_positions")]

        def run() -> list[tuple[torch.Tensor, torch.Tensor]]:
            x = torch.empty(len(mask), visual.shape[-1])
            x[positions[0]], x[positions[1]] = visual, F.embedding(ids, model.embed)
            return model.run(x, mask, last_keys_only=request["last_keys_only"])[1]

        # Making the mask is not timed, but pre-filling in this way needs its memory.
        about = {"threads": threads, "about": f"torch {torch.__version__}", "working_bytes": mask.nbytes}
        caches = workers.run_repeatedly(run, more, **about)
        keep = case["compared"]
        np.save(request["out"], np.stack([[layer[part][:, keep].numpy() for layer in caches] for part in (0, 1)]))


if __name__ == "__main__":
    serve({"attention": attention, "prefill": prefill})
