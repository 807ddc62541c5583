"""Builds a parameter in its final place, on one device or sharded over several, from tensors that are read part by part.

Every device receives only the parts of its own shard, a few MB at a time. So neither a device nor the host ever holds the
whole of a large tensor that is sharded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vxl2_jax.hosts import on_every_host

PART = 2**20
"""Elements of a tensor that are read at a time. With four times as many, the C library's allocator still held a quarter of
the weights' bytes in freed blocks after loading."""
SMALL = 2**26
"""Up to so many bytes, a parameter is made on the host as a whole. On a device every shape needs a program of its own, which
is not worth compiling for a small parameter."""

Make = Callable[[jax.Array], Any]
"""(part of a tensor) → arrays like those of the parameter, for example transposed or quantised. It must compare and hash by
value, because it is a static argument of a jitted function."""


def assemble(
    abstract: Any,
    tensors: Iterable[Any],
    make: Make,
    *,
    stacked: bool = False,
    source_axis: int = 0,
    axis: int = 0,
    same_axes: bool = False,
) -> tuple[Any, list[bool]]:
    """Build one parameter from one or several tensors, which are read, sent and written part by part.

    Args:
      abstract: a ShapeDtypeStruct, or a quantised weight of them, with the shardings of the result; without shardings, it
        is built on the default device.
      tensors: slices of a file, or arrays: anything with a shape that indexing cuts.
      make: see `Make`.
      stacked: each tensor is one layer of the parameter, which has a leading layer axis; else there is one tensor.
      source_axis: the axis along which tensors are cut into parts. `make` must work on such parts.
      axis: the same axis in the parameter (in a layer of it, if `stacked`).
      same_axes: `make` keeps axes and works element by element, so that each device receives only the elements of its shard.

    Returns:
      (the parameter, for each tensor whether all its elements are finite).
    """
    mesh, specs = _placement(abstract)
    leaf = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, device=a.sharding), abstract)
    whole = jax.tree.leaves(abstract)[0]
    of_layer = tuple(specs[0])[int(stacked) :]
    axis %= len(of_layer)
    ways = 1 if mesh is None or of_layer[axis] is None else mesh.shape[of_layer[axis]]
    finite = []
    for number, tensor in enumerate(tensors):
        cut = source_axis % len(tensor.shape)
        part_spec = P(*of_layer) if same_axes else P(*[None] * cut, of_layer[axis])
        flags: list[jax.Array] = []
        for begin, ranges in _ranges(tensor.shape, cut, ways):
            part = _place(_read(tensor, cut, ranges), mesh, part_spec)
            start = np.zeros(whole.ndim, np.int32)
            start[0] = number if stacked else 0
            start[axis + stacked] = begin
            leaf, flag = _write(leaf, part, start, make=make, mesh=mesh, specs=(specs, part_spec))
            if flags:
                flags[-1].block_until_ready()  # else parts would pile up in host memory faster than devices take them
            flags.append(flag)
        finite.append(all(np.asarray(on_every_host(flag)).all() for flag in flags))
    return leaf, finite


def place(array: np.ndarray, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """An array on the host, put where `abstract` says."""
    return jnp.array(array) if abstract.sharding is None else jax.device_put(array, abstract.sharding)


def check_finite(name: str, finite: bool | np.bool) -> None:
    """Raise ValueError with the name of an array, unless `finite`: that all its elements are."""
    if not finite:
        raise ValueError(f"{name} has NaN or infinite values")


def is_small(abstract: Any) -> bool:
    """Whether a parameter is made on the host as a whole."""
    return isinstance(abstract, jax.ShapeDtypeStruct) and abstract.size * abstract.dtype.itemsize <= SMALL


def _placement(abstract: Any) -> tuple[Mesh | None, tuple[P, ...]]:
    """(the mesh, or None for one device; the spec of each array, with an entry for each axis)."""
    leaves = jax.tree.leaves(abstract)
    if not (isinstance(leaves[0].sharding, NamedSharding) and isinstance(mesh := leaves[0].sharding.mesh, Mesh)):
        return None, tuple(P(*[None] * leaf.ndim) for leaf in leaves)
    specs = (P(*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))) for leaf in leaves)
    return mesh, tuple(specs)


def _ranges(shape: Sequence[int], axis: int, ways: int) -> Iterable[tuple[int, list[tuple[int, int]]]]:
    """The parts of a tensor that is cut along an axis into `ways` shards. One part holds the same range of every shard. Yields
    (where the part begins in a shard, the ranges [start, stop) of the axis that it consists of)."""
    share = shape[axis] // ways
    step = max(PART * share // max(math.prod(shape), 1), 1)
    for begin in range(0, share, step):
        end = min(begin + step, share)
        yield begin, [(number * share + begin, number * share + end) for number in range(ways)]


def _read(tensor: Any, axis: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    parts = [np.asarray(tensor[(*[slice(None)] * axis, slice(*one))]) for one in ranges]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _place(part: np.ndarray, mesh: Mesh | None, spec: P) -> jax.Array:
    return jnp.asarray(part) if mesh is None else jax.device_put(part, NamedSharding(mesh, spec))


@partial(jax.jit, static_argnames=("make", "mesh", "specs"), donate_argnames="leaf")
def _write(
    leaf: Any,
    part: jax.Array,
    start: jax.Array | np.ndarray,
    *,
    make: Make,
    mesh: Mesh | None,
    specs: tuple[tuple[P, ...], P],
) -> tuple[Any, jax.Array]:
    """Write `make(part)` at index `start` of every shard. Returns (the parameter, whether what was written is finite: a flag
    for each device)."""
    of_leaf, of_part = specs
    leaves, structure = jax.tree.flatten(leaf)
    write = partial(_write_shard, make=make, specs=of_leaf)
    if mesh is not None:
        names = P(mesh.axis_names)
        kinds = {"in_specs": (list(of_leaf), of_part, P()), "out_specs": (list(of_leaf), names)}
        write = jax.shard_map(write, mesh=mesh, check_vma=False, **kinds)
    leaves, finite = write(leaves, part, start)
    return structure.unflatten(leaves), finite


def _write_shard(
    leaves: list[jax.Array], part: jax.Array, start: jax.Array | np.ndarray, *, make: Make, specs: tuple[P, ...]
) -> tuple[list[jax.Array], jax.Array]:
    """The same on one device. If `make` gives more than its shard, it writes only what belongs to the shard."""
    made = jax.tree.leaves(make(part))

    def write(whole: jax.Array, new: jax.Array, spec: P) -> jax.Array:
        new = new[None] if new.ndim < whole.ndim else new
        for axis, name in enumerate(spec):
            if name is not None and new.shape[axis] > (own := whole.shape[axis]):
                new = jax.lax.dynamic_slice_in_dim(new, jax.lax.axis_index(name) * own, own, axis)
        return jax.lax.dynamic_update_slice(whole, new, list(start))

    floating = [new for new in made if jnp.issubdtype(new.dtype, jnp.floating)]
    finite = jnp.stack([jnp.isfinite(new).all() for new in floating]).all() if floating else jnp.bool_(True)
    return list(map(write, leaves, made, specs)), finite[None]
