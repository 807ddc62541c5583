"""Dense attention as JAX users have it: XLA's, cuDNN's, JAX's own Hopper kernel, splash attention on TPUs."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from bench import machine

NAMES = ("xla", "cudnn", "mgpu", "splash")
WHAT = {
    "xla": "jax.nn.dot_product_attention, XLA",
    "cudnn": "jax.nn.dot_product_attention, cuDNN",
    "mgpu": "jax.experimental.pallas.ops.gpu.attention_mgpu",
    "splash": "splash attention",
}
_MGPU = {"block_q": 64, "block_kv": 128, "max_concurrent_steps": 2}
_SPLASH_BLOCK = 512


def refusal(name: str, device: Any, *, batch: int, queries: int, keys: int, heads: int, width: int, causal: bool,
            dtype: str) -> str | None:  # fmt: skip
    """Why a baseline is not run, in one line; None where it can be tried."""
    gpu = device.platform in ("gpu", "cuda")
    if name == "xla":
        need = 2 * 4 * batch * heads * queries * keys  # fp32 logits and their softmax
        room = machine.memory_bytes(device) // 2
        return f"its logits need about {need / machine.GIB:.0f} GiB" if need > room else None
    if name == "cudnn":
        return None if gpu else "cuDNN is for NVIDIA GPUs"
    if name == "mgpu":
        if not gpu or int(float(device.compute_capability)) != 9:
            return "written for Hopper GPUs"
        if not causal and (queries % (2 * _MGPU["block_q"]) or keys % _MGPU["block_kv"]):
            return f"{queries} queries and {keys} keys are no whole blocks, and it has no mask for padding"
        return f"takes head widths in multiples of 64, not {width}" if width % 64 else None
    if name == "splash":
        if not causal:
            return "compared where attention is causal"
        if device.platform != "tpu" and keys > 2048:
            return "written for TPUs"
        return "takes head widths in multiples of 128" if width % 128 else None
    raise ValueError(f"unknown baseline {name!r}")


def attend(name: str, q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
    """Dense attention. Shapes: q [B, N, H, D]; k, v [B, S, K, D] → [B, N, H, D]."""
    if name in ("xla", "cudnn"):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=name)
    if name == "mgpu":
        return _mgpu(q, k, v, causal)
    return jax.vmap(_splash)(q, k, v)


def _mgpu(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    config = attention_mgpu.TuningConfig(**_MGPU, causal=causal)
    whole = partial(_filled, axis=1, multiple=2 * _MGPU["block_q"])  # padding lies behind all queries: none sees it
    queries = q.shape[1]
    # It does not scale its logits.
    q = (q * q.shape[-1] ** -0.5).astype(q.dtype)
    return attention_mgpu.attention(whole(q), whole(k), whole(v), config)[:, :queries]


def _splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    count, heads, width = q.shape
    block = min(_SPLASH_BLOCK, -(-count // 128) * 128)
    heads_first = lambda a: _filled(jnp.swapaxes(a, 0, 1), axis=1, multiple=block)
    q, k, v = heads_first(q * width**-0.5).astype(k.dtype), heads_first(k), heads_first(v)
    kernel = _splash_kernel(heads, q.shape[1], block, jax.default_backend() != "tpu")
    return jnp.swapaxes(kernel(q, k, v), 0, 1)[:count]


@cache
def _splash_kernel(heads: int, length: int, block: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention

    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    sizes = splash_attention.BlockSizes(block_q=block, block_kv=block)
    with jax.ensure_compile_time_eval():
        return splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)


def _filled(a: jax.Array, *, axis: int, multiple: int) -> jax.Array:
    """Padded with zeros along `axis` up to a multiple."""
    room = [(0, 0)] * a.ndim
    room[axis] = (0, -a.shape[axis] % multiple)
    return jnp.pad(a, room)
