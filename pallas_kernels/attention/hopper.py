"""Range attention for Hopper GPUs (sm_90a), in Pallas' Mosaic GPU.

A unit of work is an item and a key head. In each program a producer warpgroup lets the copy engine fill a
ring of `tiles.stages` key and value tiles, and one consumer warpgroup per 64 rows multiplies, as in
FlashAttention-3. A unit's streams, and the units of a program, go through the ring one after the other, so the copies
never pause between them. The products of a step, weights · values and the next queries · keys, are issued
together; with two consumers the softmax of one runs under the products of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention.reference import KVCache
from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes

_MASKED = -1e30  # a logit that is not seen; so far below _FLOOR that its weight is exactly 0
_FLOOR = -1e15  # where the running maximum starts: a row that saw nothing has a total of exactly 0
_LOG2_E = math.log2(math.e)
_PRODUCER_REGISTERS, _CONSUMER_REGISTERS = 24, 240  # with two consumers; with one there are enough for all
_ALIGNED = 8  # rows of a block in shared memory; copies start at multiples of it
_SHORT, _PROGRAMS = 64, 1056  # units share a program up to this many steps while this many programs (8 a core) remain


def refusal(*, dtype: jnp.dtype, width: int, rows: int, keys: int = 128) -> str | None:
    """What of a problem this kernel cannot run and what can, in one line; None where it runs."""
    if jax.__version_info__ < (0, 11):
        return f"the Hopper kernel needs jax 0.11 or newer (Python 3.12), not {jax.__version__}: use the Triton kernel"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the Hopper kernel takes bfloat16 or float16, not {jnp.dtype(dtype)}: use bfloat16 or the reference"
    if width % 16 or not 16 <= width <= 128:
        return f"the Hopper kernel takes head widths that are multiples of 16 up to 128, not {width}: pad with zeros"
    if rows not in (64, 128):
        return f"the Hopper kernel takes tiles of 64 or 128 rows, not {rows}"
    group = _columns(width)
    if keys % group or not 0 < keys <= 256:
        return f"the Hopper kernel takes a multiple of {group} up to 256 keys a step at width {width}, not {keys}"
    return None


def _columns(width: int) -> int:
    """Columns of a block in shared memory: a row of it, 2 · columns bytes, is the span of the swizzle. Blocks fill a
    head without rest, since copies know no part of one: 64 for 128 and 64, but 16 for the vision tower's 80."""
    return next(columns for columns in (64, 32, 16) if width % columns == 0)


def attend_tiles(
    q: jax.Array,
    streams: Sequence[KVCache],
    layer: jax.Array | int,
    work: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: jnp.dtype,
    interpret: bool | object = False,
) -> tuple[jax.Array, jax.Array]:
    """`reference.attend_tiles` on a Hopper GPU.

    Shapes: q [K, Q, rows, D] bfloat16 or float16 (rotated, unscaled), streams of [L, K, S, D] in q's dtype, `work`
    of T items. Returns out [K, T, rows, D] in `out_dtype` and the natural log-sum-exp fp32 [K, T, rows]. `scale`
    is positive; `tiles.warps` is not used. A stream whose S is no multiple of 8 is copied first: allocate caches in
    such multiples. `interpret`: True or InterpretGPUParams to run on a CPU. Raises
    ValueError with the text of `refusal`.
    """
    kv_heads, _, rows, width = q.shape
    if reason := refusal(dtype=q.dtype, width=width, rows=rows, keys=tiles.keys):
        raise ValueError(reason)
    consumers, items, columns = rows // 64, work.q_tile.shape[0], _columns(width)
    held = [number for number, stream in enumerate(streams) if stream.k.shape[2]]
    if len(held) < len(streams):  # the copy engine knows no empty arrays
        streams = [streams[number] for number in held]
        work = TileSchedule(work.q_tile, *(table[jnp.asarray(held)] for table in work[1:]))

    # Short units share a program, which hides how each starts and ends; long ones the GPU places as it comes free.
    def short(cache):
        return -cache.shape[2] % _ALIGNED

    def whole(cache):
        return jnp.pad(cache, ((0, 0), (0, 0), (0, short(cache)), (0, 0))) if short(cache) else cache

    streams = [KVCache(*map(whole, stream)) for stream in streams]
    longest = sum(-(-stream.k.shape[2] // tiles.keys) for stream in streams)
    share = max(1, min(_SHORT // longest, items * kv_heads // _PROGRAMS))
    operands, structure = jax.tree.flatten((q, streams, jnp.reshape(layer, 1).astype(jnp.int32), work))

    blocks = (plgpu.TilingTransform((_ALIGNED, columns)), plgpu.SwizzleTransform(2 * columns))

    def shared(*shape):
        return plgpu.SMEM((*shape, width), q.dtype, transforms=blocks)

    def body(*refs, **scratch):
        operand_refs = jax.tree.unflatten(structure, refs[:-2])
        _program(*operand_refs, *refs[-2:], **scratch, scale=scale, tiles=tiles, share=share, interpret=interpret)

    def ring(arrivals):
        return plgpu.Barrier(num_arrivals=arrivals, num_barriers=tiles.stages)

    scratch = {
        "q_tiles": shared(consumers, 64),
        "k_tiles": shared(tiles.stages, tiles.keys),
        "v_tiles": shared(tiles.stages, tiles.keys),
        "q_ready": plgpu.Barrier(num_barriers=consumers),
        "k_ready": ring(1),
        "v_ready": ring(1),
        "k_free": ring(consumers),
        "v_free": ring(consumers),
        "turn": plgpu.Barrier(num_arrivals=consumers),
    }
    if interpret:
        scratch["weight_tiles"] = plgpu.SMEM((consumers, 64, tiles.keys), q.dtype)
        interpret = plgpu.InterpretGPUParams() if interpret is True else interpret
    return plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((kv_heads, items, rows, width), out_dtype),
            jax.ShapeDtypeStruct((kv_heads, items, rows), jnp.float32),
        ),
        scratch_types=scratch,
        grid=(-(-items * kv_heads // share),),
        grid_names=("program",),
        num_threads=consumers + 1,
        thread_name="warpgroup",
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(*operands)


def _program(
    q, streams, layer, work, out, lse,
    *, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, k_free, v_free, turn, weight_tiles=None,
    scale, tiles, share, interpret,
):  # fmt: skip
    """`share` units of work, one after the other.

    Barriers. A step is a key tile; steps are counted through all streams of all units, and step j is in slot
    j mod stages.
    - k_ready, v_ready complete once a step, by the producer's copies; every consumer waits for each completion.
    - k_free, v_free complete once a step, when every consumer has arrived, which it does once a step after its
      products have read the tile. Before it fills step j the producer waits for step j − stages, and in the end for
      the last ones, so no completion is skipped. The wait for keys of step j + 1 comes before the release of values
      of step j, never of its keys, and k and v have barriers of their own: one stage is enough to go on.
    - turn (two consumers): in a unit both arrive 2 · steps + 2 times, each time followed by a wait, so neither gets
      ahead by more than one. A consumer arrives before it waits for tiles, so the other can go on to release older
      ones.
    - q_ready completes once a unit, by the consumer's own copy, issued when all its products of the last are done.
    A unit without steps touches no barrier but q_ready.
    """
    consumers, width, keys, stages = q.shape[2] // 64, q.shape[3], tiles.keys, tiles.stages
    heads, items, group = q.shape[0], work.q_tile.shape[0], math.gcd(q.shape[0], 8)
    warpgroup, program = lax.axis_index("warpgroup"), lax.axis_index("program")
    count = jnp.minimum(share, heads * items - program * share)

    def locate(index):
        """Head and item of a unit. All items of eight heads come before the next eight: the heads of a language model
        keep the order of the items, and those of a vision tower, with few items, find their keys in the cache."""
        unit = program * share + index
        return lax.div(unit, items * group) * group + lax.rem(unit, group), lax.rem(lax.div(unit, group), items)

    def steps_of(stream, item):
        item_end = work.item_end[stream, item]
        return jnp.where(item_end > work.item_start[stream, item], pl.cdiv(item_end - begin_of(stream, item), keys), 0)

    def begin_of(stream, item):
        """Copies start at whole blocks; keys before the item's first are masked."""
        return lax.div(work.item_start[stream, item], _ALIGNED) * _ALIGNED

    @pl.when(warpgroup == consumers)
    def produce():
        if consumers == 2:
            plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")

        def feed(index, done):
            head, item = locate(index)
            for number, stream in enumerate(streams):
                begin, steps = begin_of(number, item), steps_of(number, item)

                @pl.loop(0, steps)
                def fill(index, stream=stream, begin=begin, done=done):
                    step = done + index
                    slot = lax.rem(step, stages)
                    for source, ring, ready, free in (
                        (stream.k, k_tiles, k_ready, k_free),
                        (stream.v, v_tiles, v_ready, v_free),
                    ):
                        pl.when(step >= stages)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
                        rows = source.at[layer[0], head, pl.ds(begin + index * keys, keys)]
                        plgpu.copy_gmem_to_smem(rows, ring.at[slot], ready.at[slot])

                done += steps
            return done

        done = lax.fori_loop(0, count, feed, jnp.int32(0))

        @pl.loop(jnp.maximum(done - stages, 0), done)
        def drain(step):
            plgpu.barrier_wait(k_free.at[lax.rem(step, stages)])
            plgpu.barrier_wait(v_free.at[lax.rem(step, stages)])

    @pl.when(warpgroup < consumers)
    def consume():
        if consumers == 2:
            plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
        own = pl.ds(warpgroup * 64, 64)
        per_row = plgpu.Layout.WGMMA.reduce(1)

        def row_full(value):
            return plgpu.layout_cast(jnp.full((64,), value, jnp.float32), per_row)

        def zeros(columns):
            return plgpu.layout_cast(jnp.zeros((64, columns), jnp.float32), plgpu.Layout.WGMMA)

        def across(per_row, columns):
            return lax.broadcast_in_dim(per_row, (64, columns), (0,))

        def fetch_queries(index):
            head, item = locate(index)
            rows = q.at[head, work.q_tile[item], own]
            plgpu.copy_gmem_to_smem(rows, q_tiles.at[warpgroup], q_ready.at[warpgroup])

        def take_turn(between=lambda: None):
            if consumers == 2:
                plgpu.barrier_arrive(turn)
            between()
            if consumers == 2:
                plgpu.barrier_wait(turn)

        def multiply(products, sums):
            """What `sums` are once `products` has added to the accumulators it is given."""
            if interpret:  # the interpreter's accumulators start from zero only

                def added(*accumulators):
                    products(*accumulators)
                    return [ref[...] for ref in accumulators]

                return [
                    a + b for a, b in zip(sums, pl.run_scoped(added, *(plgpu.ACC(a.shape) for a in sums)), strict=False)
                ]
            return pl.run_state(lambda refs: products(*refs))([plgpu.ACC.init(a) for a in sums])

        def score(accumulator, slot):
            plgpu.wgmma(accumulator, q_tiles.at[warpgroup], k_tiles.at[slot].transpose((1, 0)))

        def attend_tile(step, last, begin, full_start, full_end, low, high, carry):
            """The softmax of a step's logits, its values, and the logits of the next step."""
            mixed, peak, total, logits = carry

            def mask(logits):
                key = begin + plgpu.broadcasted_iota(jnp.int32, (64, keys), 1, layout=plgpu.Layout.WGMMA)
                seen = (key >= across(low, keys)) & (key < across(high, keys))
                return jnp.where(seen, logits, _MASKED)

            clear = (begin >= full_start) & (begin + keys <= full_end)
            logits = lax.cond(clear, lambda logits: logits, mask, logits)
            new_peak = jnp.maximum(peak, logits.max(axis=1) * (scale * _LOG2_E))
            shrink = jnp.exp2(peak - new_peak)
            weights = jnp.exp2(logits * (scale * _LOG2_E) - across(new_peak, keys))
            total = total * shrink + weights.sum(axis=1)
            mixed = mixed * across(shrink, width)
            weights = weights.astype(q.dtype)
            if interpret:  # the interpreter multiplies from shared memory only
                weight_tiles[warpgroup] = weights
                plgpu.commit_smem()
                weights = weight_tiles.at[warpgroup]

            # The last step multiplies its own keys once more, for logits no one reads: cheaper than a branch. So it
            # releases them itself, not the step before.
            slot, next_slot = lax.rem(step, stages), lax.rem(jnp.minimum(step + 1, last), stages)

            def tiles_ready():
                plgpu.barrier_wait(v_ready.at[slot])
                pl.when(step < last)(lambda: plgpu.barrier_wait(k_ready.at[next_slot]))

            take_turn(tiles_ready)

            def products(mixed, next_logits):
                plgpu.wgmma(mixed, weights, v_tiles.at[slot])
                score(next_logits, next_slot)
                take_turn()
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(v_free.at[slot])

            mixed, logits = multiply(products, [mixed, zeros(keys)])
            pl.when(step + 1 != last)(lambda: plgpu.barrier_arrive(k_free.at[next_slot]))
            return mixed, new_peak, total, logits

        def nothing():
            return (zeros(width), row_full(_FLOOR), row_full(0.0))

        def attend_streams(item, done, steps):
            last = done + steps - 1
            slot = lax.rem(done, stages)

            def attend_stream(number, carry):
                item_start, item_end = work.item_start[number, item], work.item_end[number, item]
                clear = work.full_start[number, item], work.full_end[number, item]

                def bound(ref):
                    return plgpu.load(ref.at[number, work.q_tile[item], own], layout=per_row, optimized=False)

                low, high = jnp.maximum(bound(work.row_start), item_start), jnp.minimum(bound(work.row_end), item_end)
                begin, (step, carry) = begin_of(number, item), carry

                def body(index, carry):
                    return attend_tile(step + index, last, begin + index * keys, *clear, low, high, carry)

                steps = steps_of(number, item)
                return step + steps, lax.fori_loop(0, steps, body, carry)

            def first_products(accumulator):
                score(accumulator, slot)
                take_turn()

            plgpu.barrier_wait(k_ready.at[slot])
            pl.when(warpgroup == 1)(take_turn)
            (logits,) = multiply(first_products, [zeros(keys)])
            pl.when(steps > 1)(lambda: plgpu.barrier_arrive(k_free.at[slot]))
            _, carry = lax.fori_loop(0, len(streams), attend_stream, (done, (*nothing(), logits)))
            pl.when(warpgroup == 0)(take_turn)
            return carry[:3]

        def attend_unit(index, done):
            head, item = locate(index)
            steps = sum(steps_of(number, item) for number in range(len(streams)))
            plgpu.barrier_wait(q_ready.at[warpgroup])
            mixed, peak, total = lax.cond(steps > 0, lambda: attend_streams(item, done, steps), nothing)
            pl.when(index + 1 < count)(lambda: fetch_queries(index + 1))
            seen = total > 0
            safe = jnp.where(seen, total, 1.0)
            out[head, item, own] = (mixed * across(1.0 / safe, width)).astype(out.dtype)
            lse[head, item, own] = jnp.where(seen, peak / _LOG2_E + jnp.log(safe), -jnp.inf)
            return done + steps

        fetch_queries(0)
        lax.fori_loop(0, count, attend_unit, jnp.int32(0))
