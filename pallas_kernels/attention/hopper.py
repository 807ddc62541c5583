"""Range attention for Hopper GPUs (sm_90a), in Pallas' Mosaic GPU.

Computes: softmax attention of each item's query rows over its key ranges, with the log-sum-exp (`attend_tiles`).

Tiling: as in FlashAttention-3 (arXiv 2407.08608). A task is one item for one key head. In each program a producer
warpgroup fills a ring of `tiles.stages` key and value tiles by asynchronous copies (TMA), and one consumer warpgroup
per 64 rows multiplies. All streams of a task, and all tasks of a program, go through the ring as one sequence, so the
copies never pause. A step issues weights · values together with the next queries · keys; with two consumers, the softmax
of one overlaps with the products of the other (ping-pong scheduling).

Limits: see `refusal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.kv_cache import KVCache

_MASKED = -1e30  # logit of a masked key: so far below _M_INIT that its weight is exactly 0
_M_INIT = -1e15  # initial running maximum: the sum of a row that sees no key is exactly 0
_LOG2_E = math.log2(math.e)
_WARPGROUP_ROWS = 64  # rows of a consumer warpgroup
_PRODUCER_REGISTERS, _CONSUMER_REGISTERS = 24, 240  # with two consumers; with one, the default is enough
_ALIGNMENT = 8  # rows of a block in shared memory; copies start at multiples of it
_STAGED_COLUMNS = 32  # of results on their way to memory, where only some rows of a tile are kept
# Short tasks share a program, up to this many steps, as long as at least so many programs (8 per core) remain.
_MAX_SHARED_STEPS, _MIN_PROGRAMS = 64, 1056
WIDTH_MULTIPLE = 16
"""Head widths must be multiples of this; others are padded with zeros."""
READS_INT8 = False
"""Whether caches may be in int8, with scales."""


def refusal(*, dtype: DTypeLike, width: int, rows: int, keys: int = 128) -> str | None:
    """The reason why this kernel cannot run, in one line with the alternative; None if it can.

    Args:
      dtype: of queries, keys and values.
      width: head width D.
      rows: query rows of a tile.
      keys: keys of a tile.
    """
    if jax.__version_info__ < (0, 11):
        return f"the Hopper kernel needs jax 0.11 or newer (Python 3.12), not {jax.__version__}: use the Triton kernel"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the Hopper kernel takes bfloat16 or float16, not {jnp.dtype(dtype)}: use bfloat16 or the reference"
    if width % 16 or not 16 <= width <= 128:
        return f"the Hopper kernel takes head widths that are multiples of 16 up to 128, not {width}: pad with zeros"
    if rows not in (64, 128):
        return f"the Hopper kernel takes tiles of 64 or 128 rows, not {rows}"
    columns = _block_columns(width)
    if keys % columns or not 0 < keys <= 256:
        return f"the Hopper kernel takes a multiple of {columns} up to 256 keys per tile at width {width}, not {keys}"
    return None


def _block_columns(width: int) -> int:
    """Columns of a block in shared memory: the largest number that divides the head width, since copies cannot cut a
    block (64 for widths 128 and 64, but 16 for the vision tower's 80). A block's row, 2 · columns bytes, is the span
    of the swizzle."""
    return next(columns for columns in (64, 32, 16) if width % columns == 0)


def attend_tiles(
    q: Float[Array, "K Q rows D"],
    streams: Sequence[KVCache],
    layer: Int[ArrayLike, ""],
    schedule: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: DTypeLike,
    interpret: Any = False,
) -> tuple[Float[Array, "K T kept D"], Float[Array, "K T rows"]]:
    """Attention of the T items of a schedule in one layer of the streams; sums are fp32.

    Args:
      q: query tiles (rotated, unscaled), `rows` as in `tiles`; bfloat16 or float16.
      streams: caches [L, K, S, D] in q's dtype. Those whose S is not a multiple of 8 are copied to pad them.
      layer: index into L; may be traced.
      schedule: what each item reads.
      scale: of the logits, positive.
      tiles: tile sizes; `warps` is ignored.
      out_dtype: dtype of the output.
      interpret: True or InterpretGPUParams to run in the interpreter on a CPU.

    Returns:
      Output in `out_dtype` and natural log-sum-exp in fp32, over the keys of each item. A row that sees no key of its
      item gets zeros and −inf; a row that sees no key in any item may get any finite value.

    Raises:
      ValueError: with the text of `refusal`.
    """
    kv_heads, _, rows, width = q.shape
    if reason := refusal(dtype=q.dtype, width=width, rows=rows, keys=tiles.keys):
        raise ValueError(reason)
    consumers, items, columns = rows // _WARPGROUP_ROWS, schedule.q_tile.shape[0], _block_columns(width)
    nonempty = [index for index, stream in enumerate(streams) if stream.k.shape[2]]
    if len(nonempty) < len(streams):  # copies from empty arrays are an error
        streams = [streams[index] for index in nonempty]
        of_streams = [field for field in TileSchedule._fields if field not in ("q_tile", "first_item")]
        schedule = schedule._replace(**{field: getattr(schedule, field)[jnp.asarray(nonempty)] for field in of_streams})
    streams = [jax.tree.map(_pad_slots, stream) for stream in streams]

    # Sharing a program hides the start and end of short tasks; long tasks are left to the GPU's own scheduling, or to the
    # schedule, which then says what each program does.
    max_steps = sum(-(-stream.k.shape[2] // tiles.keys) for stream in streams)
    tasks_per_program = max(1, min(_MAX_SHARED_STEPS // max_steps, items * kv_heads // _MIN_PROGRAMS))
    programs = -(-items * kv_heads // tasks_per_program)
    if schedule.first_item is not None:
        programs = (schedule.first_item.shape[0] - 1) * kv_heads
    kept = tiles.kept or rows
    staged = kept < rows and consumers == 1
    operands, structure = jax.tree.flatten((q, streams, jnp.reshape(layer, 1).astype(jnp.int32), schedule))

    def body(*refs, **scratch) -> None:
        operand_refs = jax.tree.unflatten(structure, refs[:-2])
        _program(
            *operand_refs, *refs[-2:], **scratch,
            scale=scale, tiles=tiles, tasks_per_program=tasks_per_program, interpret=interpret,
        )  # fmt: skip

    blocks = (plgpu.TilingTransform((_ALIGNMENT, columns)), plgpu.SwizzleTransform(2 * columns))

    def shared_memory(*shape: int) -> Any:
        return plgpu.SMEM((*shape, width), q.dtype, transforms=blocks)

    def barrier_per_stage(arrivals: int) -> Any:
        return plgpu.Barrier(num_arrivals=arrivals, num_barriers=tiles.stages)

    scratch = {
        "q_tiles": shared_memory(consumers, _WARPGROUP_ROWS),
        "k_tiles": shared_memory(tiles.stages, tiles.keys),
        "v_tiles": shared_memory(tiles.stages, tiles.keys),
        "q_ready": plgpu.Barrier(num_barriers=consumers),
        "k_ready": barrier_per_stage(1),
        "v_ready": barrier_per_stage(1),
        "k_free": barrier_per_stage(consumers),
        "v_free": barrier_per_stage(consumers),
        "ping_pong": plgpu.Barrier(num_arrivals=consumers),
    }
    if staged:
        scratch["staged"] = plgpu.SMEM((_WARPGROUP_ROWS, min(_STAGED_COLUMNS, columns)), out_dtype)
    if interpret:
        scratch["weight_tiles"] = plgpu.SMEM((consumers, _WARPGROUP_ROWS, tiles.keys), q.dtype)
        interpret = plgpu.InterpretGPUParams() if interpret is True else interpret
    return plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((kv_heads, items, kept if staged else rows, width), out_dtype),
            jax.ShapeDtypeStruct((kv_heads, items, rows), jnp.float32),
        ),
        scratch_types=scratch,
        grid=(programs,),
        grid_names=("program",),
        num_threads=consumers + 1,
        thread_name="warpgroup",
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(*operands)


def _pad_slots(cache: jax.Array) -> jax.Array:
    """A cache [L, K, S, D] with S rounded up to whole blocks."""
    missing = -cache.shape[2] % _ALIGNMENT
    return jnp.pad(cache, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else cache


def _program(
    q, streams, layer, schedule, out, lse,
    *, q_tiles, k_tiles, v_tiles, q_ready, k_ready, v_ready, k_free, v_free, ping_pong,
    staged: Any = None, weight_tiles: Any = None,
    scale: float, tiles: TileSizes, tasks_per_program: int, interpret: Any,
) -> None:  # fmt: skip
    """Run `tasks_per_program` tasks one after the other, or those that the schedule names.

    Barriers. A step is one key tile. Steps are counted through all streams of all tasks; step j uses slot j mod stages
    of the ring.
    - k_ready, v_ready complete once per step, by the producer's copies; every consumer waits for each completion.
    - k_free, v_free complete once per step, when every consumer has arrived, which it does once its products have read
      the tile. Before the producer fills step j it waits for step j − stages, and at the end for the last steps, so no
      completion is skipped. A consumer waits for the keys of step j + 1 before it releases the values of step j, but
      after it released the keys of step j, and k and v have separate barriers: a single stage does not deadlock.
    - ping_pong (two consumers): in a task both arrive 2 · steps + 2 times, each time followed by a wait, so neither gets
      ahead by more than one. A consumer arrives before it waits for tiles, so that the other can go on to release older
      tiles.
    - q_ready completes once per task, by the consumer's own copy, issued when all its products of the last task are done.
    A task without steps uses no barrier but q_ready. `tests/kernels/test_hopper_barriers.py` tries every order of the actions.
    """
    consumers, width, keys, stages = q.shape[2] // _WARPGROUP_ROWS, q.shape[3], tiles.keys, tiles.stages
    heads, items, head_group = q.shape[0], schedule.q_tile.shape[0], math.gcd(q.shape[0], 8)
    warpgroup, program = lax.axis_index("warpgroup"), lax.axis_index("program")
    if schedule.first_item is None:
        tasks = jnp.minimum(tasks_per_program, heads * items - program * tasks_per_program)
    else:
        share = lax.div(program, heads)
        tasks = schedule.first_item[share + 1] - schedule.first_item[share]

    def head_and_item(index) -> tuple[jax.Array, jax.Array]:
        """The head and the item of a task. All items of eight heads come before the next eight heads: the few heads of
        a language model keep the order of the items, and those of a vision tower, with few items, share the cache."""
        if schedule.first_item is not None:
            return lax.rem(program, heads), schedule.first_item[share] + index
        task = program * tasks_per_program + index
        head = lax.div(task, items * head_group) * head_group + lax.rem(task, head_group)
        return head, lax.rem(lax.div(task, head_group), items)

    def step_count(stream, item) -> jax.Array:
        item_end = schedule.item_end[stream, item]
        nonempty = item_end > schedule.item_start[stream, item]
        return jnp.where(nonempty, pl.cdiv(item_end - aligned_start(stream, item), keys), 0)

    def aligned_start(stream, item) -> jax.Array:
        """Copies start at whole blocks; keys before the item's first one are masked."""
        return lax.div(schedule.item_start[stream, item], _ALIGNMENT) * _ALIGNMENT

    @pl.when(warpgroup == consumers)
    def produce() -> None:
        if consumers == 2:
            plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")

        def produce_task(index, done):
            head, item = head_and_item(index)
            for stream_id, stream in enumerate(streams):
                start, steps = aligned_start(stream_id, item), step_count(stream_id, item)

                @pl.loop(0, steps)
                def fill(index, stream=stream, start=start, done=done) -> None:
                    step = done + index
                    slot = lax.rem(step, stages)
                    for source, ring, ready, free in (
                        (stream.k, k_tiles, k_ready, k_free),
                        (stream.v, v_tiles, v_ready, v_free),
                    ):
                        pl.when(step >= stages)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
                        tile = source.at[layer[0], head, pl.ds(start + index * keys, keys)]
                        plgpu.copy_gmem_to_smem(tile, ring.at[slot], ready.at[slot])

                done += steps
            return done

        done = lax.fori_loop(0, tasks, produce_task, jnp.int32(0))

        @pl.loop(jnp.maximum(done - stages, 0), done)
        def drain(step) -> None:
            plgpu.barrier_wait(k_free.at[lax.rem(step, stages)])
            plgpu.barrier_wait(v_free.at[lax.rem(step, stages)])

    @pl.when(warpgroup < consumers)
    def consume() -> None:
        if consumers == 2:
            plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
        own_rows = pl.ds(warpgroup * _WARPGROUP_ROWS, _WARPGROUP_ROWS)
        row_layout = plgpu.Layout.WGMMA.reduce(1)

        def full_rows(value: float) -> jax.Array:
            return plgpu.layout_cast(jnp.full((_WARPGROUP_ROWS,), value, jnp.float32), row_layout)

        def zeros(columns: int) -> jax.Array:
            return plgpu.layout_cast(jnp.zeros((_WARPGROUP_ROWS, columns), jnp.float32), plgpu.Layout.WGMMA)

        def to_columns(per_row: jax.Array, columns: int) -> jax.Array:
            return lax.broadcast_in_dim(per_row, (_WARPGROUP_ROWS, columns), (0,))

        def copy_queries(index) -> None:
            head, item = head_and_item(index)
            source = q.at[head, schedule.q_tile[item], own_rows]
            plgpu.copy_gmem_to_smem(source, q_tiles.at[warpgroup], q_ready.at[warpgroup])

        def synchronize(before_wait: Callable[[], None] = lambda: None) -> None:
            """Meet the other consumer."""
            if consumers == 2:
                plgpu.barrier_arrive(ping_pong)
            before_wait()
            if consumers == 2:
                plgpu.barrier_wait(ping_pong)

        def accumulate(products: Callable[..., None], initial: list[Any]) -> Any:
            """The accumulators, starting from `initial`, after `products` has added to them."""
            if interpret:  # the interpreter's accumulators can only start from zero

                def from_zero(*accumulators):
                    products(*accumulators)
                    return [ref[...] for ref in accumulators]

                added = pl.run_scoped(from_zero, *(plgpu.ACC(a.shape) for a in initial))
                return [a + b for a, b in zip(initial, added, strict=True)]
            return pl.run_state(lambda refs: products(*refs))([plgpu.ACC.init(a) for a in initial])

        def multiply_keys(accumulator, slot) -> None:
            plgpu.wgmma(accumulator, q_tiles.at[warpgroup], k_tiles.at[slot].transpose((1, 0)))

        def attend_step(step, last, start, unmasked_start, unmasked_end, row_start, row_end, carry):
            """The softmax of a step's logits, their product with the values, and the logits of the next step."""
            acc, m_i, l_i, logits = carry

            def mask(logits):
                # One unsigned comparison checks both ends of the range.
                key = plgpu.broadcasted_iota(jnp.int32, (64, keys), 1, layout=plgpu.Layout.WGMMA)
                offset, length = row_start - start, jnp.maximum(row_end - row_start, 0).astype(jnp.uint32)
                seen = (key - to_columns(offset, keys)).astype(jnp.uint32) < to_columns(length, keys)
                return jnp.where(seen, logits, _MASKED)

            full = (start >= unmasked_start) & (start + keys <= unmasked_end)
            logits = lax.cond(full, lambda logits: logits, mask, logits)
            m_new = jnp.maximum(m_i, logits.max(axis=1) * (scale * _LOG2_E))
            alpha = jnp.exp2(m_i - m_new)
            weights = jnp.exp2(logits * (scale * _LOG2_E) - to_columns(m_new, keys))
            l_i = l_i * alpha + weights.sum(axis=1)
            acc = acc * to_columns(alpha, width)
            weights = weights.astype(q.dtype)
            if interpret:  # the interpreter multiplies from shared memory only
                weight_tiles[warpgroup] = weights
                plgpu.commit_smem()
                weights = weight_tiles.at[warpgroup]

            # The last step multiplies its own keys a second time, for logits that are never read: cheaper than a
            # branch. So it releases its keys itself, not the step before.
            slot, next_slot = lax.rem(step, stages), lax.rem(jnp.minimum(step + 1, last), stages)

            def wait_for_tiles() -> None:
                plgpu.barrier_wait(v_ready.at[slot])
                pl.when(step < last)(lambda: plgpu.barrier_wait(k_ready.at[next_slot]))

            synchronize(wait_for_tiles)

            def products(acc, next_logits) -> None:
                plgpu.wgmma(acc, weights, v_tiles.at[slot])
                multiply_keys(next_logits, next_slot)
                synchronize()
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(v_free.at[slot])

            acc, logits = accumulate(products, [acc, zeros(keys)])
            pl.when(step + 1 != last)(lambda: plgpu.barrier_arrive(k_free.at[next_slot]))
            return acc, m_new, l_i, logits

        def empty_carry():
            return zeros(width), full_rows(_M_INIT), full_rows(0.0)

        def attend_streams(item, done, steps):
            """(acc, m_i, l_i) of an item whose first step is `done`, counted through all tasks."""
            last = done + steps - 1
            slot = lax.rem(done, stages)

            def attend_stream(stream, carry):
                item_start, item_end = schedule.item_start[stream, item], schedule.item_end[stream, item]
                full_range = schedule.unmasked_start[stream, item], schedule.unmasked_end[stream, item]

                def load_bound(table) -> jax.Array:
                    ref = table.at[stream, schedule.q_tile[item], own_rows]
                    return plgpu.load(ref, layout=row_layout, optimized=False)

                row_start = jnp.maximum(load_bound(schedule.row_start), item_start)
                row_end = jnp.minimum(load_bound(schedule.row_end), item_end)
                start, (step, carry) = aligned_start(stream, item), carry

                def body(index, carry):
                    return attend_step(
                        step + index, last, start + index * keys, *full_range, row_start, row_end, carry
                    )  # fmt: skip

                steps = step_count(stream, item)
                return step + steps, lax.fori_loop(0, steps, body, carry)

            def first_products(accumulator) -> None:
                multiply_keys(accumulator, slot)
                synchronize()

            plgpu.barrier_wait(k_ready.at[slot])
            pl.when(warpgroup == 1)(synchronize)
            (logits,) = accumulate(first_products, [zeros(keys)])
            pl.when(steps > 1)(lambda: plgpu.barrier_arrive(k_free.at[slot]))
            _, carry = lax.fori_loop(0, len(streams), attend_stream, (done, (*empty_carry(), logits)))
            pl.when(warpgroup == 0)(synchronize)
            return carry[:3]

        def store(head, item, results) -> None:
            if staged is None:
                out[head, item, own_rows] = results
                return
            # Registers hold all rows of a tile; a copy from shared memory writes only those that are kept.
            kept, columns = pl.ds(0, out.shape[2]), staged.shape[1]
            for first in range(0, width, columns):
                staged[...] = results[:, first : first + columns]
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(staged.at[kept], out.at[head, item, :, pl.ds(first, columns)])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        def consume_task(index, done):
            head, item = head_and_item(index)
            steps = sum(step_count(stream, item) for stream in range(len(streams)))
            plgpu.barrier_wait(q_ready.at[warpgroup])
            acc, m_i, l_i = lax.cond(steps > 0, lambda: attend_streams(item, done, steps), empty_carry)
            pl.when(index + 1 < tasks)(lambda: copy_queries(index + 1))
            sees_any = l_i > 0
            l_safe = jnp.where(sees_any, l_i, 1.0)
            store(head, item, (acc * to_columns(1.0 / l_safe, width)).astype(out.dtype))
            lse[head, item, own_rows] = jnp.where(sees_any, m_i / _LOG2_E + jnp.log(l_safe), -jnp.inf)
            return done + steps

        pl.when(tasks > 0)(lambda: copy_queries(0))
        lax.fori_loop(0, tasks, consume_task, jnp.int32(0))
        if staged is not None:
            plgpu.wait_smem_to_gmem(0)
