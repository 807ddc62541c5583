"""Dense attention as JAX users have it: XLA's, cuDNN's, JAX's own Hopper kernel, splash attention on TPUs."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import machine

NAMES = ("xla", "cudnn", "mgpu", "splash")
WHAT = {
    "xla": "jax.nn.dot_product_attention, XLA",
    "cudnn": "jax.nn.dot_product_attention, cuDNN",
    "mgpu": "jax.experimental.pallas.ops.gpu.attention_mgpu, float16",
    "splash": "splash attention",
}
_MGPU = {"block_q": 64, "block_kv": 128, "max_concurrent_steps": 2}
_SPLASH_BLOCK = 512


def refusal(
    name: str, device: Any, *, batch: int, queries: int, keys: int, heads: int, width: int, causal: bool
) -> str | None:
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


def ready(name: str, q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> tuple[jax.Array, ...]:
    """q [B, N, H, D] and k, v [B, S, K, D] as an implementation wants them: made outside the timing."""
    if name == "mgpu":
        # It does not scale its logits and takes float16 only. Padding lies behind all queries: causally none sees it.
        def whole(a):
            return _filled(a, axis=1, multiple=2 * _MGPU["block_q"]).astype(jnp.float16)

        return whole(q.astype(jnp.float32) * q.shape[-1] ** -0.5), whole(k), whole(v)
    if name == "splash":

        def heads_first(a):
            return _filled(jnp.swapaxes(a, 1, 2), axis=2, multiple=_block(q.shape[1]))

        scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        _splash_kernel(q.shape[2], q.shape[1])  # its tables are made now, not inside a compiled function
        return heads_first(scaled), heads_first(k), heads_first(v)
    return q, k, v


def attend(name: str, q: jax.Array, k: jax.Array, v: jax.Array, *, count: int, causal: bool) -> jax.Array:
    """Dense attention of `count` queries, as `ready` gave them; see `rows` for what comes out."""
    if name == "mgpu":
        from jax.experimental.pallas.ops.gpu import attention_mgpu

        return attention_mgpu.attention(q, k, v, attention_mgpu.TuningConfig(**_MGPU, causal=causal))
    if name == "splash":
        return jax.vmap(_splash_kernel(q.shape[1], count))(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=name)


def rows(name: str, out: jax.Array, wanted: Any) -> jax.Array:
    """Rows [n, H, D] of the first sequence of an implementation's output."""
    return jnp.swapaxes(out[0], 0, 1)[wanted] if name == "splash" else out[0, wanted]


def _block(count: int) -> int:
    return min(_SPLASH_BLOCK, -(-count // 128) * 128)


@cache
def _splash_kernel(heads: int, count: int) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention

    block = _block(count)
    length = -(-count // block) * block
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    sizes = splash_attention.BlockSizes(block_q=block, block_kv=block)
    interpret = jax.default_backend() != "tpu"
    return splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)


def _filled(a: jax.Array, *, axis: int, multiple: int) -> jax.Array:
    """Padded with zeros along `axis` up to a multiple."""
    room = [(0, 0)] * a.ndim
    room[axis] = (0, -a.shape[axis] % multiple)
    return jnp.pad(a, room)
