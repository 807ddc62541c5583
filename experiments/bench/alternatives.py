"""Attention as libraries provide it: XLA, cuDNN, JAX's Hopper kernel, splash attention, PyTorch's FlexAttention, SDPA."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import costs, machine, measure, problems, workers
from experiments.bench.machine import Session
from experiments.bench.masks import Tokens
from experiments.bench.measure import TOLERANCE, Timing, evenly, reference_attention, relative_error
from experiments.bench.report import BASELINE, NotRun, Row
from pallas_kernels.attention import KVCache

JAX_NAMES = {
    "xla": "jax.nn.dot_product_attention, XLA",
    "cudnn": "jax.nn.dot_product_attention, cuDNN",
    "mgpu": "jax.experimental.pallas.ops.gpu.attention_mgpu, float16",
    "splash": "splash attention",
}
FLEX_NAMES = {
    "flex": "torch FlexAttention, the same rule, natural order",
    "flex_streams": "torch FlexAttention, the same rule, our storage order",
    "flex_tuned": "torch FlexAttention, our storage order, max-autotune",
}
NAMES = {**JAX_NAMES, **FLEX_NAMES, "sdpa": "torch scaled_dot_product_attention"}
_MGPU = {"block_q": 64, "block_kv": 128, "max_concurrent_steps": 2}
_SPLASH_BLOCK = 512
_TORCH_LIMIT_S = 600.0
_SAMPLED = 24  # rows whose errors are measured


@dataclass(frozen=True)
class Attention:
    """Dense attention: q [batch, queries, heads, width] over k, v [batch, keys, kv_heads, width]."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    dtype: str
    causal: bool = False

    @property
    def flops(self) -> int:
        pairs = self.keys * (self.keys + 1) // 2 if self.causal else self.queries * self.keys
        return self.batch * costs.attention_flops(pairs, self.heads, self.width)

    @property
    def bytes(self) -> int:
        itemsize = jnp.dtype(self.dtype).itemsize
        sizes = (self.queries, self.keys, self.heads, self.kv_heads, self.width)
        return self.batch * costs.attention_bytes(*sizes, itemsize)

    def inputs(self, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Random q, k, v."""
        keys = jax.random.split(jax.random.key(seed), 3)
        counts = ((self.queries, self.heads), (self.keys, self.kv_heads), (self.keys, self.kv_heads))
        return tuple(
            problems.normal(key, (self.batch, *count, self.width), self.dtype)
            for key, count in zip(keys, counts, strict=True)
        )


def add(
    session: Session, name: str, problem: Attention, row: Row, *, calls: int = 1, rule: tuple[Tokens, int] | None = None
) -> None:
    """Measure a library and add the row of `calls` calls. rule: tokens and window, of FlexAttention only."""

    def measured() -> dict[str, Any]:
        found = _in_torch(session, name, problem, rule) if name not in JAX_NAMES else _in_jax(session, name, problem)
        return {**found, "timing": found["timing"].times(calls)}

    session.report.attempt(replace(row, name=NAMES[name], kind=BASELINE), measured)


def measure_call(
    session: Session,
    problem: Attention,
    call: Callable[..., jax.Array],
    *,
    prepare: Callable[..., tuple] = lambda *qkv: qkv,
    rows_of: Callable[[jax.Array, np.ndarray], jax.Array] = lambda out, rows: out[0, rows],
) -> dict[str, Any]:
    """Time call(*prepare(q, k, v)); returns fields of a Row. Rows of the first sequence are checked on fresh inputs."""
    number = measure.sets_beyond_cache(problem.bytes) if session.accelerator else 1
    seed = session.args.seed
    sets = [prepare(*problem.inputs(seed + n)) for n in range(number)]
    floor_s = number * session.report.ceilings.floor_s(problem.flops, problem.bytes)
    count = measure.turns(floor_s, session.accelerator)
    run = measure.repeated(lambda _, *qkv: call(*qkv), count)
    timing = measure.clock(run, sets, samples=session.args.samples, calls=count * number)
    # The executable that was timed, on other inputs: an output that was never written cannot be right.
    q, k, v = problem.inputs(seed + 1000)
    out = run([*sets[:-1], prepare(q, k, v)])
    rows = evenly(problem.queries, _SAMPLED)
    end = rows[None] + 1 if problem.causal else np.full((1, len(rows)), problem.keys, np.int32)
    cache = KVCache(*(jnp.swapaxes(a[:1], 1, 2) for a in (k, v)))
    expected = reference_attention(q[0, rows], (cache,), np.zeros_like(end), end)
    error = relative_error(rows_of(out, rows), expected) if bool(jnp.isfinite(out).all()) else float("nan")
    return {"timing": timing, "error": error, "tolerance": TOLERANCE[problem.dtype]}


def _in_torch(session: Session, name: str, problem: Attention, rule: tuple[Tokens, int] | None) -> dict[str, Any]:
    """PyTorch in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rule.npz"
        if rule:
            np.savez(path, window=rule[1], **rule[0]._asdict())
        request = {"task": "attention", "name": name, "rule": str(path), **asdict(problem)}
        request |= {"samples": session.args.samples, "seed": session.args.seed}
        limit_s = min(session.report.left_s, _TORCH_LIMIT_S)
        replies, failure = workers.run(workers.TORCH, request, python=session.args.torch_python, limit_s=limit_s)
    if failure:
        raise NotRun(failure)
    found = replies[-1]
    timing = Timing(tuple(found["seconds"]))
    return {"timing": timing, "error": found["error"], "tolerance": TOLERANCE[problem.dtype], "note": found["note"]}


def _in_jax(session: Session, name: str, problem: Attention) -> dict[str, Any]:
    if reason := refusal(name, session.device, problem):
        raise NotRun(reason)
    call = partial(_attend, name, count=problem.queries, causal=problem.causal)
    if name == "splash":
        return measure_call(
            session, problem, call, prepare=_prepare_splash, rows_of=lambda out, rows: jnp.swapaxes(out[0], 0, 1)[rows]
        )
    return measure_call(session, problem, call, prepare=_prepare_mgpu if name == "mgpu" else lambda *qkv: qkv)


def refusal(name: str, device: Any, problem: Attention) -> str | None:
    """Why one of JAX_NAMES is not run, in one line; None where it can be tried."""
    gpu = device.platform in ("gpu", "cuda")
    if name == "xla":
        logits = 2 * 4 * problem.batch * problem.heads * problem.queries * problem.keys  # float32, and their softmax
        return f"its logits take {logits / 2**30:.0f} GiB" if logits > machine.memory_bytes(device) // 2 else None
    if name == "cudnn":
        return None if gpu else "cuDNN is for NVIDIA GPUs"
    if name == "mgpu":
        if not gpu or int(float(device.compute_capability)) != 9:
            return "written for Hopper GPUs"
        whole = problem.queries % (2 * _MGPU["block_q"]) == problem.keys % _MGPU["block_kv"] == 0
        if not problem.causal and not whole:
            return f"{problem.queries} queries and {problem.keys} keys are no whole blocks, and it cannot mask padding"
        return f"takes head widths in multiples of 64, not {problem.width}" if problem.width % 64 else None
    if not problem.causal:
        return "measured where attention is causal"
    if device.platform != "tpu" and problem.keys > 2048:
        return "written for TPUs"
    return f"takes head widths in multiples of 128, not {problem.width}" if problem.width % 128 else None


def _prepare_mgpu(*qkv: jax.Array) -> tuple[jax.Array, ...]:
    # It does not scale logits and takes float16 only. Padding lies after all queries: causal ones do not see it.
    q, k, v = (_padded(a, axis=1, multiple=2 * _MGPU["block_q"]) for a in qkv)
    return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(jnp.float16), *(a.astype(jnp.float16) for a in (k, v))


def _prepare_splash(*qkv: jax.Array) -> tuple[jax.Array, ...]:
    count, heads, width = qkv[0].shape[1:]
    q, k, v = (_padded(jnp.swapaxes(a, 1, 2), axis=2, multiple=_splash_block(count)) for a in qkv)
    _splash_kernel(heads, count)  # makes its tables here, not inside a compiled function
    return (q.astype(jnp.float32) * width**-0.5).astype(q.dtype), k, v


def _attend(name: str, q: jax.Array, k: jax.Array, v: jax.Array, *, count: int, causal: bool) -> jax.Array:
    if name == "mgpu":
        from jax.experimental.pallas.ops.gpu import attention_mgpu

        return attention_mgpu.attention(q, k, v, attention_mgpu.TuningConfig(**_MGPU, causal=causal))
    if name == "splash":
        return jax.vmap(_splash_kernel(q.shape[1], count))(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=name)


def _splash_block(count: int) -> int:
    return min(_SPLASH_BLOCK, -(-count // 128) * 128)


@cache
def _splash_kernel(heads: int, count: int) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention

    block = _splash_block(count)
    length = -(-count // block) * block
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    sizes = splash_attention.BlockSizes(block_q=block, block_kv=block)
    interpret = jax.default_backend() != "tpu"
    return splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)


def _padded(a: jax.Array, *, axis: int, multiple: int) -> jax.Array:
    """Zero-padded along `axis` to a multiple."""
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, -a.shape[axis] % multiple)
    return jnp.pad(a, widths)
