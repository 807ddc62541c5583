"""Sequence parallelism: one video over several devices, each of which pre-fills its own strides and keeps their keys.

One call feeds as many strides as the mesh has devices along its axis `sequence`. In every layer

- a visual token attends to the keys of its device and to a *halo*: the last keys of the stride before, from the neighbour;
- the keys and values of all timestamps are gathered, for every device keeps the global stream whole (it has one token in
  twenty);
- a timestamp attends to the visual keys of all devices: its query is gathered, and the partial results are merged by their
  log-sum-exp.

`placement` says which device holds which groups. Asking reads keys where they are and merges in the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from pallas_kernels import attention, kv_cache
from pallas_kernels.attention import REFERENCE, Kernel, KVCache
from pallas_kernels.attention.tile_schedule import merge_partials
from vxl2_jax import prefill
from vxl2_jax.buckets import bucket
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import GLOBAL, VISUAL, PrefillRule, key_ranges
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.placement import Placement
from vxl2_jax.prefill import DenseCache, PrefillShape
from vxl2_jax.tensor_parallel import CACHE, SEQUENCE, SHARDED_CACHE, PerDevice, program

STREAMS: Any = DenseCache(cast(Any, SHARDED_CACHE), cast(Any, CACHE))
"""How the dense level of a sharded video is sharded."""


class DeviceStride(NamedTuple):
    """What one device feeds through the layers. N: its visual tokens; T: its global ones (padded); Z: the number of devices.

    Attributes:
      ids: int32 [T], the global tokens.
      positions: int32 [N + T], of the visual tokens, then of the global ones.
      visual_ranges: int32 [2, 2, N], start and end of the keys that visual tokens read of the device's visual stream and of
        the global stream; see `layout.key_ranges`.
      halo_ranges: int32 [2, 1, N'], the same of the halo, for the first tokens of the stride.
      global_ranges: int32 [2, 1, T], the same for the device's global tokens, of the global stream.
      gathered_ranges: int32 [2, 1, Z·T], the same for the global tokens of all devices, of the device's visual stream.
      visual_offset: int32, where the device writes its visual rows.
      is_last: whether no stride of this call comes after that of the device.
    """

    ids: np.ndarray
    positions: np.ndarray
    visual_ranges: np.ndarray
    halo_ranges: np.ndarray
    global_ranges: np.ndarray
    gathered_ranges: np.ndarray
    visual_offset: np.ndarray | np.int32
    is_last: np.ndarray | np.bool


class SharedStride(NamedTuple):
    """What all devices of a mesh feed through the layers in one call.

    Attributes:
      own: a `DeviceStride` of each device.
      order: int32 [Z·T], the gathered global rows in the order of the stream.
      global_offset: int32, where they are written.
    """

    own: PerDevice
    order: np.ndarray
    global_offset: np.int32


def halo_groups(rule: PrefillRule, placement: Placement) -> int:
    """The groups before a stride to which its visual tokens attend.

    Raises RequestError if they are more than a stride: then they are not all on the neighbour.
    """
    aligned = placement.stride % rule.block_size == 0 and placement.lead % rule.block_size == 0
    blocks = placement.layout.groups if rule.prev_blocks is None else rule.prev_blocks
    needed = blocks * rule.block_size + (0 if aligned else rule.block_size - 1)
    if needed > placement.stride and placement.layout.groups > placement.stride:
        raise RequestError(
            f"mesh {SEQUENCE}={placement.devices}: a group attends to {'all' if rule.prev_blocks is None else needed} groups before "
            f"it, but strides have {placement.stride}: give a smaller prev_blocks or block_size, or a mesh without {SEQUENCE}"
        )
    return min(needed, placement.stride)


def shape_for(placement: Placement, first: int = 0, *, dtype: DTypeLike = jnp.float32) -> PrefillShape:
    """Sizes of one device for the strides from group `first` on, rounded up as in `prefill.shape_for`."""
    layout, devices, stride = placement.layout, placement.devices, placement.stride
    whole = prefill.shape_for(layout, devices * stride, first, dtype=dtype)
    held = max(int((placement.owner[:first] == device).sum()) for device in range(devices))
    calls = -(-(max(layout.groups, 1) - first) // (devices * stride))
    rows = prefill.global_rows(layout, stride)
    # Whole strides are written by all devices, whatever they hold.
    visual = max(bucket(-(-held // stride) + calls) * stride * layout.visual, prefill.MIN_CAPACITY[0])
    return PrefillShape(
        stride, rows, kv_cache.aligned(visual, dtype), kv_cache.aligned(whole.global_ + devices * rows, dtype)
    )


def plan_strides(
    placement: Placement,
    rule: PrefillRule,
    global_ids: Int[np.ndarray, " global"],
    sizes: PrefillShape,
    first: int = 0,
) -> list[SharedStride]:
    """Divide a video, from group `first` on, into strides of all devices. global_ids: tokens of the whole global stream.

    Raises RequestError as `halo_groups`.
    """
    layout, halo = placement.layout, halo_groups(rule, placement)
    begins = range(first, max(layout.groups, 1), placement.devices * placement.stride)
    # Once for all calls: of a long video they are millions.
    positions = layout.visual_positions(), layout.global_positions()
    return [_plan_call(placement, rule, global_ids, positions, sizes, begin, halo) for begin in begins]


def _plan_call(
    placement: Placement,
    rule: PrefillRule,
    ids: np.ndarray,
    positions: tuple[np.ndarray, np.ndarray],
    sizes: PrefillShape,
    first: int,
    halo: int,
) -> SharedStride:
    """The call whose first stride begins at group `first`. positions: of all visual and all global tokens."""
    layout, devices, rows = placement.layout, placement.devices, sizes.global_rows
    ranks = (np.arange(devices) - first_device(placement, first)) % devices
    begins = np.minimum(first + ranks * placement.stride, layout.groups)
    spans = [layout.global_range(b, min(b + placement.stride, layout.groups)) for b in begins.tolist()]
    gathered = np.concatenate([_pad(key_ranges(layout, rule, GLOBAL, *span)[1][VISUAL], rows) for span in spans])
    own = []
    for device, (begin, span) in enumerate(zip(begins.tolist(), spans, strict=True)):
        read = np.stack([0 * gathered, placement.visual(gathered, device)])[:, None]
        visual = _visual_of(placement, rule, device, begin, halo)
        fed = positions[VISUAL][begin * layout.visual :][: placement.stride * layout.visual]
        globals_ = _pad(np.stack(key_ranges(layout, rule, GLOBAL, *span))[:, GLOBAL], rows)[:, None]
        of_all = [_pad(fed, placement.stride * layout.visual), _pad(positions[GLOBAL][slice(*span)], rows)]
        ids_of = _pad(ids[slice(*span)], rows)
        last = np.bool_(ranks[device] == devices - 1)
        own.append(
            DeviceStride(
                ids_of, np.concatenate(of_all), visual.ranges, visual.halo, globals_, read, visual.offset, last
            )
        )
    order = np.concatenate(
        [device * rows + np.arange(spans[device][1] - spans[device][0]) for device in np.argsort(ranks)]
    )
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *own)
    offset = layout.global_range(first, layout.groups)[0]
    return SharedStride(PerDevice(stacked), _pad(order, devices * rows), np.int32(offset))


class _Visual(NamedTuple):
    """The visual part of a `DeviceStride`."""

    ranges: np.ndarray
    halo: np.ndarray
    offset: np.int32


def _visual_of(placement: Placement, rule: PrefillRule, device: int, begin: int, halo: int) -> _Visual:
    """Of the stride that begins at group `begin`; past the end of the video it reads nothing."""
    layout = placement.layout
    count, before, start = (groups * layout.visual for groups in (placement.stride, halo, begin))
    k_start, k_end = key_ranges(layout, rule, VISUAL, start, start + count)
    offset = placement.visual(np.asarray([start]), device)[0]

    def ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.where(first < last, np.stack([first, last]), 0).astype(np.int32)

    # What precedes the stride is in the halo, the rest is on the device.
    near = ranges(np.maximum(k_start[VISUAL], start) - start + offset, k_end[VISUAL] - start + offset)
    far = ranges(k_start[VISUAL] - start + before, np.minimum(k_end[VISUAL], start) - start + before)
    around = ranges(k_start[GLOBAL], k_end[GLOBAL])
    return _Visual(np.stack([near, around], axis=1), far[:, None, :before], np.int32(offset))


def _pad(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]).astype(np.int32)


def first_device(placement: Placement, first: int) -> int:
    """The device of the stride that begins at group `first`."""
    return int(placement.piece(first)) % placement.devices


def put_tokens(tokens: Float[Array, "groups V E"], placement: Placement, first: int, mesh: Mesh) -> PerDevice:
    """The visual tokens of a call whose first stride begins at group `first`, those of each device on it: [Z, stride, V, E]."""
    each = tokens.reshape(placement.devices, placement.stride, *tokens.shape[1:])
    if turn := first_device(placement, first):
        each = jnp.roll(each, turn, axis=0)
    return PerDevice(jax.device_put(each, NamedSharding(mesh, P(SEQUENCE))))


@program(static=("config", "kernel"), donated=("streams",), results=STREAMS)
def run_stride(
    params: Any,
    config: ModelConfig,
    streams: DenseCache,
    stride: SharedStride,
    visual_tokens: PerDevice,
    kernel: Kernel = REFERENCE,
) -> DenseCache:
    """Feed a stride of every device through the language model.

    Returns the cache, which is donated, with the keys and values of all of them. visual_tokens: see `put_tokens`.
    """
    language = params["language"]
    x = prefill.embed_stride(language, config, stride.own.own().ids, visual_tokens.own())
    attend = _attend(config.language, stride, kernel, streams)
    return qwen2.run_layers(language, config.language, x, attend, streams, last_keys_only=True)[1]


def _attend(lm: LanguageConfig, stride: SharedStride, kernel: Kernel, streams: DenseCache) -> qwen2.AttendLayer:
    """How a layer of a device attends: it writes rows into the caches, then reads as the docstring of this module says."""
    own: DeviceStride = stride.own.own()
    count = len(own.positions) - len(own.ids)
    cos, sin = (table[:, None] for table in rotation(own.positions, lm.head_width, lm.rope_theta))
    halo = own.halo_ranges.shape[-1]
    devices = own.gathered_ranges.shape[-1] // len(own.ids)
    neighbours = [(device, (device + 1) % devices) for device in range(devices)]

    def plan(ranges: Any, *read: KVCache) -> attention.AttentionPlan:
        return attention.plan_attention(kernel, *ranges, heads=lm.heads, streams=read)

    visual_plan = plan(own.visual_ranges, streams.visual, streams.global_)
    global_plan, gathered_plan = plan(own.global_ranges, streams.global_), plan(own.gathered_ranges, streams.visual)
    halo_plan = plan(own.halo_ranges, _layer_rows(streams.visual, 0, 0, halo)) if halo else None

    def from_neighbour(visual: KVCache, layer: Array) -> KVCache:
        """The keys before the device's stride: those of the stride before it, or of the last stride of the call before."""
        end = own.visual_offset + jnp.where(own.is_last, 0, count)
        rows = _layer_rows(visual, layer, jnp.maximum(end - halo, 0), halo)
        # The first stride of a video may be shorter than a halo: its keys are then the last ones of these rows.
        rows = jax.tree.map(lambda a: jnp.roll(a, jnp.maximum(halo - end, 0), axis=2), rows)
        return jax.tree.map(lambda a: jax.lax.ppermute(a, SEQUENCE, neighbours), rows)

    def attend(q: Array, k: Array, v: Array, cache: DenseCache, layer: Array) -> tuple[Array, DenseCache]:
        k, q = rotate(k, cos, sin), rotate(q, cos, sin)
        visual = cache.visual.write(k[:count], v[:count], layer, own.visual_offset)
        everyones = [jax.lax.all_gather(rows[count:], SEQUENCE, tiled=True) for rows in (q, k, v)]
        new_k, new_v = (rows[stride.order] for rows in everyones[1:])
        global_ = cache.global_.write(new_k, new_v, layer, stride.global_offset)

        def read(
            q: Array, streams: tuple[KVCache, ...], plan: attention.AttentionPlan, layer: Any
        ) -> tuple[Array, Array]:
            return attention.attend(q, streams, plan, layer=layer, out_dtype=jnp.float32)

        of_visual = read(q[:count], (visual, global_), visual_plan, layer)
        if halo_plan is not None:
            of_halo = read(q[:halo], (from_neighbour(visual, layer),), halo_plan, 0)
            merged = _merge([tuple(part[:halo] for part in of_visual), of_halo])
            of_visual = tuple(jnp.concatenate([new, old[halo:]]) for new, old in zip(merged, of_visual, strict=True))
        on_devices = merge_shares(*read(everyones[0], (visual,), gathered_plan, layer))
        of_global = _merge([read(q[count:], (global_,), global_plan, layer), on_devices])
        out = jnp.concatenate([of_visual[0], of_global[0]]).astype(q.dtype)
        return out, DenseCache(visual, global_)

    return attend


def _layer_rows(stream: KVCache, layer: Any, start: Any, count: int) -> KVCache:
    """`count` slots of one layer: a cache of one layer."""

    def cut(part: Array) -> Array:
        return jax.lax.dynamic_slice(part, (layer, 0, start, 0), (1, part.shape[1], count, part.shape[3]))

    return jax.tree.map(cut, stream)


def _merge(partials: list[Any]) -> tuple[Array, Array]:
    return merge_partials([(out[None], lse[None]) for out, lse in partials], axis=0)


def merge_shares(out: Float[Array, "rows H D"], lse: Float32[Array, "rows H"]) -> tuple[Array, Array]:
    """Merge what the devices have read for the queries of all of them; each gets the result of its own queries, in fp32.

    out, lse: of Z·T queries, those of the first device first. Returns [T, H, D] and [T, H].
    """
    largest = jax.lax.pmax(lse, SEQUENCE)
    weights = _weights(lse, largest)
    parts = (out * weights[..., None], weights)
    total, normalizer = (jax.lax.psum_scatter(part, SEQUENCE, scatter_dimension=0, tiled=True) for part in parts)
    count = len(normalizer)
    own = jax.lax.dynamic_slice_in_dim(largest, jax.lax.axis_index(SEQUENCE) * count, count)
    return _normalised(total, normalizer, own)


def merge_devices(out: Float[Array, "*rows H D"], lse: Float32[Array, "*rows H"]) -> tuple[Array, Array]:
    """Merge what the devices have read for the same queries, in fp32; all of them get the result."""
    largest = jax.lax.pmax(lse, SEQUENCE)
    weights = _weights(lse, largest)
    total, normalizer = jax.lax.psum((out.astype(jnp.float32) * weights[..., None], weights), SEQUENCE)
    return _normalised(total, normalizer, largest)


def _weights(lse: Array, largest: Array) -> Array:
    """exp(lse − largest); 0 where no device has seen a key."""
    return jnp.exp(lse - jnp.where(jnp.isfinite(largest), largest, 0.0))


def _normalised(total: Array, normalizer: Array, largest: Array) -> tuple[Array, Array]:
    seen = normalizer > 0
    normalizer = jnp.where(seen, normalizer, 1.0)
    return total / normalizer[..., None], jnp.where(seen, jnp.log(normalizer) + largest, -jnp.inf)
