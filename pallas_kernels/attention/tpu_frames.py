"""Full attention within frames for TPUs, in Pallas' Mosaic: the vision tower's.

Computes: softmax attention among the N patches of each frame (`attend_frames`).

Tiling: heads lie next to each other in the columns that the projections wrote, and the results where the next projection reads
them, so that nothing is padded, transposed or cut outside of the kernel. The grid is (frames, tiles of rows). Heads of, say, 72
columns do not start at multiples of 128 lanes: a head is two blocks of lanes, rotated. All keys of a frame are one tile, so the
softmax needs no running state, and only the last lanes of logits a mask.

Limits: see `refusal`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.attention.tpu_layout import LANES, sublanes
from pallas_kernels.attention.tpu_step import MASKED

_TOGETHER = 2  # heads of one step, so that the products of one overlap with the softmax of another
_WINDOW = 2 * LANES  # lanes that hold a head, wherever it starts


def refusal(*, dtype: DTypeLike, heads: int, width: int, patches: int) -> str | None:
    """The reason why this kernel cannot run, in one line with the alternative; None if it can."""
    instead = "use the kernel for key ranges"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the TPU kernel for frames takes bfloat16 or float32, not {jnp.dtype(dtype).name}: {instead}"
    if width > LANES or heads * width % LANES or heads * width < _WINDOW:
        return f"the TPU kernel for frames takes a multiple of {LANES} columns, not {heads} heads of width {width}: {instead}"
    if patches > 1024:
        return f"the TPU kernel for frames takes up to 1024 patches, not {patches}: {instead}"
    return None


def _words(x: jax.Array) -> jax.Array:
    """Words of 32 bits, in which numbers of 16 bits lie in pairs of rows: these are what is rotated and selected."""
    return pltpu.bitcast(x, jnp.int32)


def _kernel(q, k, v, out, *, heads: int, width: int, patches: int, scale: float) -> None:
    """A tile of rows of one frame, all heads. Blocks [1, rows or keys, heads · width]."""
    keys, columns = k.shape[1], heads * width
    held = -(-keys // LANES) * LANES  # logits are whole blocks of lanes
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    product = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    blocks = [slice(first, first + LANES) for first in range(0, held, LANES)]

    def place(head) -> tuple[Any, jax.Array]:
        """The window of lanes in which a head lies, and its first lane there."""
        block = jnp.minimum(head * width // LANES, columns // LANES - 2)
        return pl.ds(pl.multiple_of(block * LANES, LANES), _WINDOW), head * width - block * LANES

    def head_of(ref, head, cleared: bool = False) -> jax.Array:
        """[rows, LANES], of which the first `width` lanes are the head's, and the others those of its neighbours, or zeros."""
        window, first = place(head)
        words = pltpu.roll(_words(ref[0, :, window]), jnp.where(first == 0, 0, _WINDOW - first), 1)[:, :LANES]
        if cleared:
            words = jnp.where(lax.broadcasted_iota(jnp.int32, words.shape, 1) < width, words, 0)
        return pltpu.bitcast(words, ref.dtype)

    def filled(*parts) -> jax.Array:
        """The parts and zeros below, [held, LANES]."""
        rows = sum(part.shape[0] for part in parts)
        below = [jnp.zeros((held - rows, LANES), parts[0].dtype)] if rows < held else []
        return jnp.concatenate([*parts, *below], axis=0)

    def logits_of(head) -> jax.Array:
        return product(head_of(q, head), filled(head_of(k, head, cleared=True)), (((1,), (1,)), ((), ())))

    def values_of(head) -> jax.Array:
        """Values; below the last patch memory may hold anything, NaN as well, which a weight of zero does not remove."""
        values, last = head_of(v, head), keys - sublanes(v.dtype)
        row = last + lax.broadcasted_iota(jnp.int32, (keys - last, LANES), 0)
        return filled(values[:last], jnp.where(row < patches, values[last:], jnp.zeros_like(values[last:])))

    def attend(head, logits) -> None:
        last = blocks[-1]
        key = last.start + lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        parts = [logits[:, block] for block in blocks[:-1]]
        parts.append(jnp.where(key < patches, logits[:, last], MASKED))
        m_i = jnp.max(functools.reduce(jnp.maximum, parts), axis=1, keepdims=True)
        weights = [jnp.exp2((part - m_i) * (scale * math.log2(math.e))) for part in parts]
        l_i = jnp.sum(functools.reduce(jnp.add, weights), axis=1, keepdims=True)
        rounded = jnp.concatenate([weight.astype(v.dtype) for weight in weights], axis=1)  # [rows, held]
        values = product(rounded, values_of(head), (((1,), (0,)), ((), ())))
        store(head, (values * (1.0 / l_i)).astype(out.dtype))

    def store(head, result) -> None:
        """result [rows, LANES] → its columns of `out`."""
        window, first = place(head)
        words = pltpu.roll(_words(jnp.concatenate([result, jnp.zeros_like(result)], axis=1)), first, 1)
        lane = lax.broadcasted_iota(jnp.int32, words.shape, 1)
        words = jnp.where((lane >= first) & (lane < first + width), words, _words(out[0, :, window]))
        out[0, :, window] = pltpu.bitcast(words, out.dtype)

    def some_heads(first, count: int) -> None:
        """Heads, each head's logits issued before the softmax of the head before it."""
        logits = logits_of(first)
        for head in range(1, count):
            next_logits = logits_of(first + head)
            attend(first + head - 1, logits)
            logits = next_logits
        attend(first + count - 1, logits)

    together = math.gcd(heads, _TOGETHER)
    pl.loop(0, heads // together)(lambda group: some_heads(group * together, together))


@functools.partial(jax.jit, static_argnames=("heads", "rows", "scale", "interpret"))
def attend_frames(
    q: Float[Array, "F N columns"],
    k: Float[Array, "F N columns"],
    v: Float[Array, "F N columns"],
    *,
    heads: int,
    rows: int,
    scale: float,
    interpret: Any = False,
) -> Float[Array, "F N columns"]:
    """Attention among the patches of each frame; sums are fp32.

    Args:
      q, k, v: bfloat16 or float32; head h is in columns h · width to (h + 1) · width.
      heads: their number H, of the width columns / H.
      rows: query rows of a tile.
      scale: of the logits, positive.
      interpret: True to run in an interpreter on a CPU.

    Returns:
      The same layout and dtype.

    Raises:
      ValueError: with the text of `refusal`.
    """
    frames, patches, columns = q.shape
    width = columns // heads
    if reason := refusal(dtype=q.dtype, heads=heads, width=width, patches=patches):
        raise ValueError(reason)
    multiple = sublanes(q.dtype)
    keys = -(-patches // multiple) * multiple
    tiles = -(-patches // rows)
    # Blocks are held twice, and logits of two heads with their weights; 16 MiB are the default, and all that a v4 has.
    held = 4 * (rows + keys) * columns * q.dtype.itemsize + 4 * rows * (keys + LANES) * 4
    limit = None if held < 15 << 20 else held + (8 << 20)
    whole = pl.BlockSpec((1, keys, columns), lambda frame, tile: (frame, 0, 0))
    some = pl.BlockSpec((1, rows, columns), lambda frame, tile: (frame, tile, 0))
    return pl.pallas_call(
        functools.partial(_kernel, heads=heads, width=width, patches=patches, scale=scale),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(frames, tiles),
        in_specs=[some, whole, whole],
        out_specs=some,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=limit),
        interpret=interpret,
        name="attend_frames",
    )(q, k, v)
