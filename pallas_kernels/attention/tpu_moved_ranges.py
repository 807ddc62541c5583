"""Log-sum-exp of queries over many short key ranges, each moved by an angle of its own, for TPUs in Pallas' Mosaic.

Computes: for every range, the log-sum-exp of the logits of all query rows (`log_sum_exp`). Values are not read.

Tiling: the grid is (cores, key heads per core, tiles of rows, groups of ranges); a step takes `_PER_STEP` ranges, one after the
other. Keys stay in HBM; a ring of `_STAGES` tiles in VMEM, each as long as the longest range, is filled ahead of the
arithmetic, across steps. Logits are held transposed, keys × rows, so that sums over keys need no exchange between lanes and
a range's result is a row. Keys are rotated in float32 and multiplied in the dtype of the queries.

Limits: as `tpu.refusal`; without an interpreter the head width must be 128.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.tpu_layout import LANES, parts_of, start_multiple, sublanes
from pallas_kernels.kv_cache import KVCache

_MASKED = -1e30  # logit of a key outside of the range
_PER_STEP, _STAGES, _MAX_ROWS = 8, 4, 512


def _kernel(
    start, end, layer, q, cos, sin, *refs, tiles_of_rows: int, heads: int, groups: int, keys: int
) -> None:  # fmt: skip
    """`_PER_STEP` ranges for one tile of rows of one key head. `start`, `end` [C] and `layer` are in scalar memory; `sin` has the
    sign with which the other half of a key is added."""
    parts = (len(refs) - 2) // 2
    caches, out, rings, arrived = refs[:parts], refs[parts], refs[parts + 1 : -1], refs[-1]
    align, slots, width = start_multiple(caches[0].dtype), caches[0].shape[2], q.shape[-1]
    size = min(keys, slots)
    core, head, tile, group = (pl.program_id(axis) for axis in range(4))
    ranges = groups * _PER_STEP
    begun, places = ((head * tiles_of_rows + tile) * groups + group) * _PER_STEP, heads * tiles_of_rows * ranges
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def first_slot(number):
        return jnp.minimum(start[number] & -align, slots - size)

    def copies(place):
        """The copies of the range at a place of the whole sequence."""
        of_head, number = core * heads + place // (tiles_of_rows * ranges), lax.rem(place, ranges)
        own, held, slot = (
            pl.ds(pl.multiple_of(first_slot(number), align), size),
            pl.ds(0, size),
            lax.rem(place, _STAGES),
        )
        for index, (cache, ring) in enumerate(zip(caches, rings, strict=True)):
            at, to = ((own,), (held,)) if index == 0 else ((slice(None), own), (slice(None), held))
            yield pltpu.make_async_copy(cache.at[layer[0], of_head, *at], ring.at[slot, *to], arrived.at[slot, index])

    def used(place):
        number = lax.rem(place, ranges)
        return end[number] > start[number]

    def fetch(place) -> None:
        @pl.when(place < places)
        def _() -> None:
            @pl.when(used(place))
            def _() -> None:
                for copy in copies(place):
                    copy.start()

    @pl.when(begun == 0)
    def _() -> None:
        for place in range(_STAGES - 1):
            fetch(jnp.int32(place))

    def one_range(index, carry):
        place = begun + index
        number, slot = lax.rem(place, ranges), lax.rem(place, _STAGES)
        fetch(place + _STAGES - 1)

        @pl.when(used(place))
        def _() -> None:
            for copy in copies(place):
                copy.wait()

        k = rings[0][slot].astype(jnp.float32)
        if parts == 2:
            k = k * jnp.broadcast_to(rings[1][slot], (LANES, keys)).T[:, :width]
        own = pl.ds(index, 1)
        moved = k * cos[own] + pltpu.roll(k, width // 2, 1) * sin[own]
        logits = lax.dot_general(
            moved.astype(q.dtype), q[0], (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip
        key = first_slot(number) + lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        logits = jnp.where((key >= start[number]) & (key < end[number]), logits, _MASKED)
        largest = jnp.max(logits, axis=0, keepdims=True)
        found = largest + jnp.log(jnp.sum(jnp.exp(logits - largest), axis=0, keepdims=True))
        out[0, 0, own] = jnp.where(used(place), found, -jnp.inf)
        return carry

    lax.fori_loop(0, _PER_STEP, one_range, None)


def log_sum_exp(
    q: Float[Array, "K rows D"],
    cache: KVCache,
    layer: Int[ArrayLike, ""],
    start: Int[ArrayLike, " C"],
    end: Int[ArrayLike, " C"],
    cos: Float[Array, "C half"],
    sin: Float[Array, "C half"],
    *,
    width: int,
    interpret: Any = False,
) -> Float[Array, "C K rows"]:
    """The natural log-sum-exp of each query's logits over each key range, in fp32.

    Args:
      q: rotated queries of every key head, scaled; bfloat16 or float32.
      cache: [L, K, S, D] in q's dtype or in int8. It is read in place under the conditions of `tpu.attend_tiles`.
      layer: index into L; may be traced.
      start, end: the range start ≤ index < end of slots, at most `width` of them; where it is empty, the result is −inf.
      cos, sin: of the angle by which the keys of each range are rotated first; half = D / 2.
      interpret: True or pltpu.InterpretParams to run in an interpreter on a CPU.
    """
    kv_heads, count, head_width = q.shape
    multiple, align = sublanes(q.dtype), start_multiple(cache.dtype)
    tiles_of_rows = -(-count // _MAX_ROWS)
    rows = -(-count // (tiles_of_rows * multiple)) * multiple
    if tiles_of_rows > 1 or rows > LANES:  # a block's rows are lanes of the result
        rows = -(-rows // LANES) * LANES
    groups, keys = -(-cos.shape[0] // _PER_STEP), -(-(width + align - 1) // LANES) * LANES
    cores = 2 if kv_heads % 2 == 0 else 1  # chips with two cores in one device split this dimension of the grid
    heads, missing = kv_heads // cores, groups * _PER_STEP - cos.shape[0]
    q = jnp.pad(q, ((0, 0), (0, rows * tiles_of_rows - count), (0, 0)))
    bounds = (jnp.pad(jnp.asarray(bound, jnp.int32), (0, missing)) for bound in (start, end))
    angles = (jnp.pad(jnp.concatenate(halves, axis=1), ((0, missing), (0, 0))) for halves in ((cos, cos), (-sin, sin)))
    caches = parts_of(cache, interpret)[::2]  # keys, and of a cache in int8 their scales

    def row_block(core, head, tile, group, *_) -> tuple:
        return (core * heads + head, tile, 0)

    def angle_block(core, head, tile, group, *_) -> tuple:
        return (group, 0)

    out = pl.pallas_call(
        functools.partial(_kernel, tiles_of_rows=tiles_of_rows, heads=heads, groups=groups, keys=keys),
        out_shape=jax.ShapeDtypeStruct((kv_heads, tiles_of_rows, groups * _PER_STEP, rows), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(cores, heads, tiles_of_rows, groups),
            in_specs=[
                pl.BlockSpec((1, rows, head_width), row_block),
                *[pl.BlockSpec((_PER_STEP, head_width), angle_block)] * 2,
                *[pl.BlockSpec(memory_space=pl.ANY)] * len(caches),
            ],
            out_specs=pl.BlockSpec(
                (1, 1, _PER_STEP, rows), lambda core, head, tile, group, *_: (core * heads + head, tile, group, 0)
            ),
            scratch_shapes=[
                pltpu.VMEM((_STAGES, keys, head_width), cache.dtype),
                *[pltpu.VMEM((_STAGES, 1, keys), jnp.float32)] * (len(caches) - 1),
                pltpu.SemaphoreType.DMA((_STAGES, len(caches))),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
            disable_bounds_checks=True,  # copies always lie inside the cache
        ),
        interpret=interpret,
        name="moved_log_sum_exp",
    )(*bounds, jnp.asarray(layer, jnp.int32).reshape(1), q, *angles, *caches)
    return rearrange(out, "k t c r -> c k (t r)")[: cos.shape[0], :, :count]
