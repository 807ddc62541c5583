"""One way into attention: which kernel runs on a device, and why; then the same call for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention import ampere, hopper, reference, tile_schedule, tile_sizes, tpu
from pallas_kernels.attention.reference import KVCache
from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes

BACKENDS: dict[str, ModuleType] = {"tpu": tpu, "hopper": hopper, "ampere": ampere}
NAMES = ("auto", *BACKENDS, "reference")
_TILE, _CPU_QUERIES, _CPU_KEYS, _CPU_ABREAST = 512, 72, (192, 96), 8
"""Tiles of the reference. An accelerator wants few and large steps: so many queries and keys. A CPU wants little that is
cut off by the ranges, logits that stay in its cache, and yet few calls: small tiles, several of them abreast. Its keys are
of the first stream (of which queries see a window) and of others, twice as many where all queries are one tile."""
CPU_KEYS = tuple(2 * keys for keys in _CPU_KEYS)
"""The most keys of a tile of the reference on a CPU, in the first stream and in others."""


@dataclass(frozen=True)
class Kernel:
    """A kernel as jitted functions take it: static and hashable. `interpret`: run on the CPU, step by step."""

    name: str = "reference"
    cores: int = 1
    by_rows: tuple[TileSizes, ...] = ()
    full: TileSizes | None = None
    full_width: int = 0
    interpret: bool = False

    @property
    def backend(self) -> ModuleType:
        """The module with `attend_tiles` and `refusal`; the reference has none."""
        return BACKENDS[self.name]

    def tiles_for(self, rows: int) -> TileSizes:
        """The smallest tiles that hold `rows` packed rows of a key head, else the largest."""
        return next((t for t in self.by_rows if t.rows >= rows), self.by_rows[-1])


REFERENCE = Kernel()


class KernelChoice(NamedTuple):
    """A kernel and one line that says why it was taken."""

    kernel: Kernel
    reason: str


def _candidates(device: Any) -> list[str]:
    """Kernels written for a device, best first."""
    if device.platform == "tpu":
        return ["tpu"]
    if device.platform in ("gpu", "cuda"):
        capability = float(getattr(device, "compute_capability", 0) or 0)
        return ["hopper", "ampere"] if int(capability) == 9 else ["ampere"] if capability >= 8 else []
    return []


def choose_kernel(
    name: str = "auto", *, dtype: Any, width: int, device: Any = None, failed: Mapping[str, str] = MappingProxyType({})
) -> KernelChoice:
    """Choose the kernel for caches of `dtype` and head width `width` on `device` (default: the first).

    `name` "auto" takes the best kernel that can run and falls back to the reference, saying why. A kernel
    asked for by name is taken; on a CPU it runs in Pallas' interpreter, which is for checking, not for speed.
    `failed`: kernels that "auto" passes over, and why.

    Raises ValueError for an unknown name, and for a kernel that cannot do what is asked or cannot run on the device.
    """
    if name not in NAMES:
        raise ValueError(f"unknown attention kernel {name!r}: choose {', '.join(NAMES)}")
    device = device or jax.devices()[0]
    kind = getattr(device, "device_kind", device.platform)
    if name == "reference":
        return KernelChoice(REFERENCE, "reference, as asked")
    able = _candidates(device)
    if name != "auto":
        if name not in able and device.platform != "cpu":
            better = f"{able[0]} or reference" if able else "reference"
            raise ValueError(f"the {name} attention kernel does not run on {kind}: choose {better}")
        kernel = _kernel(name, kind, interpret=device.platform == "cpu")
        if why := _refusal(kernel, dtype, width):
            raise ValueError(why)
        how = ", interpreted: slow, for checking only" if kernel.interpret else ""
        return KernelChoice(kernel, f"{name}, as asked{how}")
    if not able:
        return KernelChoice(REFERENCE, f"reference, in {jnp.dtype(dtype)}: no kernel is written for {kind}")
    refused = []
    for candidate in able:
        kernel = _kernel(candidate, kind)
        if not (why := failed.get(candidate) or _refusal(kernel, dtype, width)):
            return KernelChoice(kernel, "; ".join([f"{candidate}: written for {kind}", *refused]))
        refused.append(f"not {candidate} ({why})")
    return KernelChoice(REFERENCE, f"reference, in {jnp.dtype(dtype)}: " + "; ".join(refused))


def _kernel(name: str, device_kind: str, interpret: bool = False) -> Kernel:
    found = tile_sizes.lookup(name, device_kind)
    # An interpreter is one core: work cut up for many would only be more steps.
    return Kernel(name, 1 if interpret else found.cores, found.by_rows, found.full, found.full_width, interpret)


def _refusal(kernel: Kernel, dtype: Any, width: int) -> str | None:
    """Why a kernel cannot serve caches of this dtype and width with one of its tiles, or None."""
    if kernel.name == "ampere" and not kernel.interpret and jnp.dtype(dtype) == jnp.float32:
        # It compiles, but full float32 products know no tensor cores and their tiles spill; it serves for checking.
        return "the ampere kernel takes bfloat16 or float16 on a GPU, not float32: use one of these or the reference"
    return next((why for t in kernel.by_rows if (why := _refuses(kernel, dtype, width, t))), None)


def _refuses(kernel: Kernel, dtype: Any, width: int, sizes: TileSizes) -> str | None:
    return kernel.backend.refusal(dtype=jnp.dtype(dtype), width=_padded(width), rows=sizes.rows)


def _padded(width: int) -> int:
    """Head widths that every backend takes are multiples of 16; others are padded with zeros."""
    return -(-width // 16) * 16


def _widened(stream: KVCache, layer: jax.Array, width: int) -> KVCache:
    """One layer of a stream with heads padded to `width`: a copy, which only odd head widths (no real model) pay."""

    def one(a):
        return jax.lax.dynamic_index_in_dim(a, layer, keepdims=True)

    return KVCache(*(jnp.pad(one(a), ((0, 0), (0, 0), (0, 0), (0, width - a.shape[-1]))) for a in stream))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("k_start", "k_end", "work"),
    meta_fields=("kernel", "repeats", "tiles", "pieces"),
)
@dataclass(frozen=True)
class AttentionPlan:
    """What queries read, made ready for a kernel once and used in every layer: a pytree.

    starts, stops int32 [S, N]: the key ranges; work: its tables (None for the reference); repeats: query
    heads per key head; pieces: items that each tile of rows was cut into.
    """

    k_start: jax.Array
    k_end: jax.Array
    work: TileSchedule | None
    kernel: Kernel
    repeats: int
    tiles: TileSizes | None
    pieces: int


def plan_attention(
    kernel: Kernel, k_start: jax.Array, k_end: jax.Array, *, heads: int, streams: Sequence[KVCache]
) -> AttentionPlan:
    """Tables for queries that see the keys starts[s, n] ≤ index < stops[s, n] of every stream s.

    Shapes: starts, stops int32 [S, N]; streams of [L, K, *, D], of which only shapes are looked at. Where the tiles
    of rows are too few to fill the device, each is cut into pieces. Raises ValueError for shapes that do not fit.
    """
    k_start, k_end = jnp.asarray(k_start, jnp.int32), jnp.asarray(k_end, jnp.int32)
    kv_heads, capacity = streams[0].k.shape[1], sum(s.k.shape[2] for s in streams)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    if k_start.ndim != 2 or k_start.shape != k_end.shape or len(k_start) != len(streams):
        raise ValueError(f"starts and stops must be [{len(streams)}, queries], not {k_start.shape} and {k_end.shape}")
    repeats = heads // kv_heads
    if kernel.name == "reference":
        return AttentionPlan(k_start, k_end, None, kernel, repeats, None, 1)
    sizes = kernel.tiles_for(k_start.shape[1] * repeats)
    table = tile_schedule.schedule_tiles(k_start, k_end, repeats, sizes.rows)
    count = pieces_per_tile(table.q_tile.shape[0] * kv_heads, kernel.cores, capacity // (4 * sizes.keys))
    return AttentionPlan(
        k_start, k_end, tile_schedule.split_items(table, count, sizes.keys), kernel, repeats, sizes, count
    )


def pieces_per_tile(tiles_of_rows: int, cores: int, most: int, waves: int = 4) -> int:
    """How many items to cut each tile of rows into, so that `cores` working side by side end together.

    A device works in waves of `cores` items, and the last wave is seldom full; with `waves` waves or more
    little is lost. `most` bounds the pieces so that each still has a few key tiles.
    """
    return max(1, min(-(-waves * cores // tiles_of_rows) if tiles_of_rows < waves * cores else 1, most))


def attend(
    q: jax.Array,
    streams: Sequence[KVCache],
    reads: AttentionPlan,
    *,
    layer: jax.Array | int = 0,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of each query over its key ranges in one layer of the streams.

    Shapes: q [N, H, D] (rotated); streams of [L, K, S, D], K dividing H; `reads` from `plan_attention`. Returns out
    [N, H, D] in q's dtype and the natural log-sum-exp fp32 [N, H], by which partial results merge. A query
    that sees no key gets zeros and −inf. Queries are read in the streams' dtype; sums are fp32.

    Raises ValueError for shapes other than were prepared, and for a dtype or width that the kernel does not
    take, naming what does.
    """
    _check(q, streams, reads)
    count, heads, width = q.shape
    scale = width**-0.5 if scale is None else scale
    if reads.work is None:
        return reference.attend(
            q, streams, reads.k_start, reads.k_end, layer=layer, scale=scale, **_reference_tiles(count, len(streams))
        )
    packed = tile_schedule.pack_rows(q.astype(streams[0].k.dtype), heads // reads.repeats, reads.tiles.rows)
    out, lse = run_items(
        reads.kernel,
        packed,
        streams,
        layer,
        reads.work,
        scale=scale,
        sizes=reads.tiles,
        out_dtype=q.dtype if reads.pieces == 1 else jnp.float32,
    )
    if reads.pieces > 1:

        def by_piece(a):
            return a.reshape(a.shape[0], -1, reads.pieces, *a.shape[2:])

        out, lse = tile_schedule.merge_partials(by_piece(out), by_piece(lse), axis=2)
    out, lse = (tile_schedule.unpack_rows(a, count, reads.repeats) for a in (out, lse))
    # Kernels do not mask for rows of padding, which see nothing at all.
    seen = (reads.k_end > reads.k_start).any(axis=0)[:, None]
    return jnp.where(seen[..., None], out, 0).astype(q.dtype), jnp.where(seen, lse, -jnp.inf)


def _reference_tiles(count: int, streams: int) -> dict[str, Any]:
    """Tiles of `reference.attend` that suit the machine."""
    if jax.default_backend() != "cpu":
        return {"query_tile": _TILE, "key_tile": _TILE}
    item_start, other = CPU_KEYS if count <= _CPU_QUERIES else _CPU_KEYS
    return {"query_tile": _CPU_QUERIES, "key_tile": (item_start, *[other] * (streams - 1)), "abreast": _CPU_ABREAST}


def _check(q: jax.Array, streams: Sequence[KVCache], reads: AttentionPlan) -> None:
    """Raise ValueError unless queries and streams are of the shapes that `reads` was prepared for."""
    count, kv_heads = reads.k_start.shape[1], streams[0].k.shape[1]
    if len(streams) != len(reads.k_start):
        raise ValueError(f"ranges of {len(reads.k_start)} streams were prepared, not of {len(streams)}")
    if q.ndim != 3 or q.shape[:2] != (count, kv_heads * reads.repeats):
        raise ValueError(f"q must be [{count}, {kv_heads * reads.repeats}, width] as was prepared, not {list(q.shape)}")
    for stream in streams:
        if stream.k.shape != stream.v.shape or stream.k.shape[1] != kv_heads or stream.k.shape[3] != q.shape[2]:
            raise ValueError(
                f"keys and values must be [layers, {kv_heads}, slots, {q.shape[2]}] like the queries, "
                f"not {list(stream.k.shape)} and {list(stream.v.shape)}"
            )


def run_items(
    kernel: Kernel,
    q: jax.Array,
    streams: Sequence[KVCache],
    layer: jax.Array | int,
    table: TileSchedule,
    *,
    scale: float,
    sizes: TileSizes,
    out_dtype: Any,
) -> tuple[jax.Array, jax.Array]:
    """`attend_tiles` of a kernel's backend (see `reference.attend_tiles`) for any head width.

    Raises ValueError for a dtype, width or tiles that the kernel does not take, naming what does.
    """
    width, layer = q.shape[-1], jnp.asarray(layer, jnp.int32)
    if why := _refuses(kernel, streams[0].k.dtype, width, sizes):
        raise ValueError(why)
    if (wide := _padded(width)) != width:
        q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, wide - width)))
        streams, layer = tuple(_widened(stream, layer, wide) for stream in streams), jnp.int32(0)
    out, lse = _jitted(kernel.name)(
        q, tuple(streams), layer, table, scale=scale, tiles=sizes, out_dtype=out_dtype, interpret=kernel.interpret
    )
    return out[..., :width], lse


@cache
def _jitted(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """A call of its own: traced once for all layers, and flax's scan does not look inside."""
    return jax.jit(BACKENDS[name].attend_tiles, static_argnames=("scale", "tiles", "out_dtype", "interpret"))


def full_attention(
    kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float | None = None
) -> jax.Array:
    """Full attention within many short sequences, such as the patches of a batch of frames.

    Shapes: q, k, v [F, N, H, D] → [F, N, H, D]. Heads are padded to a width the kernel likes; frames and
    heads become the kernel's key heads.
    """
    frames, count, heads, width = q.shape
    scale = width**-0.5 if scale is None else scale
    if kernel.name == "reference":
        logits = jnp.einsum("fnhd,fmhd->fhnm", q, k, preferred_element_type=jnp.float32) * scale
        return jnp.einsum("fhnm,fmhd->fnhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
    sizes = kernel.full
    wide = max(kernel.full_width, width)
    room = -(-count // 16) * 16

    def fill(a, length):
        return jnp.pad(
            jnp.moveaxis(a, 2, 1).reshape(frames * heads, count, width),
            ((0, 0), (0, length - count), (0, wide - width)),
        )

    stream = KVCache(*(fill(a, room)[None] for a in (k, v)))
    tiles_of_rows = -(-count // sizes.rows)
    bounds = jnp.full((1, tiles_of_rows), count, jnp.int32)
    rows = jnp.full((1, tiles_of_rows, sizes.rows), count, jnp.int32)
    nothing = jnp.zeros_like
    table = TileSchedule(
        jnp.arange(tiles_of_rows, dtype=jnp.int32),
        nothing(bounds),
        bounds,
        nothing(bounds),
        bounds,
        nothing(rows),
        rows,
    )
    packed = fill(q, tiles_of_rows * sizes.rows).reshape(frames * heads, tiles_of_rows, sizes.rows, wide)
    out, _ = run_items(kernel, packed, (stream,), 0, table, scale=scale, sizes=sizes, out_dtype=q.dtype)
    out = out.reshape(frames, heads, -1, wide)[:, :, :count, :width]
    return jnp.moveaxis(out, 1, 2)
