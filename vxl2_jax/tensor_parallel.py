"""Meshes for inference, and tensor parallelism: heads, MLP channels and vocabulary are sharded over devices (arXiv 1909.08053).

A mesh has the axis `model` and, if one video is sharded too (see `sequence_parallel`), `sequence`. Along `model`, each device has
a shard of the language model's weights and of the key/value caches, and runs the same program on it. The residual stream is
replicated. A layer communicates twice, where the devices' products are summed. The weights of the vision half are
replicated, and its frames are divided among all devices.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.kv_cache import KVCache
from vxl2_jax.config import LanguageConfig, ModelConfig, SequenceLanguageConfig, ShardedLanguageConfig
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.models.quantised import QuantisedWeight, bytes_of, is_quantised
from vxl2_jax.parallel import COLUMN_PARALLEL, MODEL, ROW_PARALLEL

SEQUENCE = SequenceLanguageConfig.sequence
AXES = (SEQUENCE, MODEL)
CACHE = P(None, MODEL)
"""How a cache [L, K, S, D] is sharded: by key head."""
SHARDED_CACHE = P(None, MODEL, SEQUENCE)
"""How the cache of a sharded video is: by key head and by slot."""


_INT4_OPTIONS = {"xla_gpu_experimental_pack_dot_operands_along_k_dimension": False}
"""Otherwise XLA for GPUs copies all weights in 4 bits into another layout, in each call: 3.6 GB of the released model."""


class MeshShape(NamedTuple):
    """Over how many devices the model and the video are sharded."""

    model: int = 1
    sequence: int = 1

    @property
    def devices(self) -> int:
        """The devices of the mesh."""
        return self.model * self.sequence

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self._asdict().items() if size > 1) or f"{MODEL}=1"


def parse(text: str | None) -> MeshShape:
    """The sizes in a text such as "model=4" or "model=2,sequence=4"; None is one device. Raises RequestError."""
    if text is None:
        return MeshShape()
    parts = re.split(r"\s*,\s*", text.strip()) if isinstance(text, str) else []
    found = [re.fullmatch(rf"({MODEL}|{SEQUENCE})\s*=\s*([1-9]\d{{0,3}})", part) for part in parts]
    sizes = {match[1]: int(match[2]) for match in found if match}
    if not parts or len(sizes) < len(parts):
        raise RequestError(
            f"mesh must be {MODEL}=N, {SEQUENCE}=N or both with a comma, for N devices, not {shown(text)}"
        )
    return MeshShape(**sizes)


def make_mesh(config: ModelConfig, shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of this shape. Raises RequestError if there are too few devices, or the model cannot be sharded so."""
    devices = list(jax.devices() if devices is None else devices)
    if shape.devices > len(devices):
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, but there are {len(devices)}; choose a smaller one"
        )
    if jax.process_count() > 1 and shape.devices < len(devices):
        raise RequestError(f"mesh {shape} leaves devices of some hosts out: give a mesh of all {len(devices)}")
    check_divides(config, shape.model)
    # Neighbours along `model` communicate twice per layer, those along `sequence` less.
    grid = np.asarray(devices[: shape.devices]).reshape(shape.sequence, shape.model)
    names = AXES if shape.sequence > 1 else (MODEL,)
    return Mesh(grid if shape.sequence > 1 else grid[0], names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def shape_of(mesh: Mesh | None) -> MeshShape:
    """The shape of a mesh; None is one device."""
    return MeshShape() if mesh is None else MeshShape(**dict(mesh.shape))


def check_divides(config: ModelConfig, ways: int) -> None:
    """Raise RequestError if the model cannot be sharded over `ways` devices."""
    lm = config.language
    sizes = {"key/value heads": lm.kv_heads, "MLP channels": lm.mlp, "width": lm.width, "vocabulary": lm.vocabulary}
    for name, size in sizes.items():
        if size % ways:
            raise RequestError(f"mesh {MODEL}={ways} does not divide the model's {name}, {size}; choose a divisor")


def shard_config(config: ModelConfig, shape: MeshShape) -> ModelConfig:
    """The configuration of one device's shard: its heads, key/value heads and MLP channels."""
    if shape.devices == 1:
        return config
    whole = {item.name: getattr(config.language, item.name) for item in fields(LanguageConfig)}
    counts = {name: whole[name] // shape.model for name in ("heads", "kv_heads", "mlp")}
    kind = ShardedLanguageConfig if shape.sequence == 1 else SequenceLanguageConfig
    return replace(config, language=kind(**{**whole, **counts}))


def placed(mesh: Mesh, params: Any) -> Any:
    """The shapes of parameters (ShapeDtypeStructs), with their shardings on a mesh.

    Raises RequestError for 4-bit weights whose groups do not divide.
    """

    def sharded(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    leaves, structure = jax.tree.flatten(params)
    specs = structure.flatten_up_to(param_specs(params, mesh.shape[MODEL]))
    return structure.unflatten(list(map(sharded, leaves, specs)))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh over which the first array of a tree is placed; None for one device."""
    leaf = next(iter(jax.tree.leaves(tree)), None)
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) or isinstance(leaf, jax.core.Tracer):
        return None
    found = leaf.sharding
    mesh = found.mesh if isinstance(found, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.axis_names in (AXES, (MODEL,)) else None


def cache_sharding(tree: Any) -> NamedSharding | None:
    """Where the caches of a model are, of whose parameters or caches this is a tree; None for the default device."""
    mesh = mesh_of(tree)
    return None if mesh is None else NamedSharding(mesh, CACHE)


def place_caches(caches: Any, params: Any) -> Any:
    """Caches, also those on the host, where a model with these parameters has its own. No device receives more than that."""
    if (mesh := mesh_of(params)) is None and mesh_of(caches) is not None:
        return jax.device_put(caches, jax.tree.leaves(params)[0].sharding)
    return jax.device_put(caches, None if mesh is None else NamedSharding(mesh, CACHE))


def device_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def shard_bytes(params: Any, ways: int) -> int:
    """Bytes of one device's shard of parameters, which may be shapes."""
    leaves, structure = jax.tree.flatten(params)
    specs = structure.flatten_up_to(param_specs(params, ways))

    def shard(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
        shape = [size // ways if axis else size for size, axis in zip_longest(leaf.shape, spec)]
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return bytes_of([shard(leaf, spec) for leaf, spec in zip(leaves, specs, strict=True)])


def param_specs(params: Any, ways: int) -> Any:
    """The PartitionSpec of each parameter, in a tree of the same structure. Raises RequestError as `placed`."""

    def spec(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        axis = _sharded_axis(names)
        if not is_quantised(leaf):
            return _spec(leaf.ndim, axis)
        return QuantisedWeight(
            _spec(leaf.values.ndim, axis), _spec_of_scale(leaf, axis, ways), leaf.group, leaf.activations
        )

    return jax.tree_util.tree_map_with_path(spec, params, is_leaf=is_quantised)


def _sharded_axis(names: Sequence[str]) -> int | None:
    """The axis of a parameter, counted from the last, that is sharded; None if it is replicated."""
    if names[0] != "language":
        return None
    if names[1:] in (["embed"], ["head"]):
        return -1
    if names[-2] in COLUMN_PARALLEL:
        return -1
    return -2 if names[-2] in ROW_PARALLEL and names[-1] == "kernel" else None


def _spec(ndim: int, axis: int | None) -> P:
    return P(*(MODEL if axis is not None and number == ndim + axis else None for number in range(ndim)))


def _spec_of_scale(weight: QuantisedWeight, axis: int | None, ways: int) -> P:
    """A scale is sharded as its weight is, along axes that it has."""
    scale = weight.scale
    if axis is None or scale.shape[axis] == 1:
        return P()
    if axis == -2 and (weight.values.shape[-2] // ways) % (weight.group or 1):
        raise RequestError(f"mesh {MODEL}={ways} divides the groups of {weight.group} weights of int4; use int8")
    return _spec(scale.ndim, axis)


def specs_of(tree: Any) -> Any:
    """The PartitionSpecs of results: caches are sharded by key head, everything else is replicated."""

    def spec(node: Any) -> Any:
        return jax.tree.map(lambda _: CACHE, node) if isinstance(node, KVCache) else P()

    return jax.tree.map(spec, tree, is_leaf=lambda node: isinstance(node, KVCache))


class PerDevice(NamedTuple):
    """Arrays that have the devices of the sequence axis as their first axis: an argument of which each device gets its own."""

    arrays: Any

    def own(self) -> Any:
        """The arrays of this device, in a program."""
        return jax.tree.map(lambda a: a[0], self.arrays)


def _specs_of_arguments(tree: Any) -> Any:
    """The PartitionSpecs of arguments: caches stay where they are, each device gets its own of a `PerDevice`, and everything
    else is replicated."""

    def spec(node: Any) -> Any:
        if isinstance(node, PerDevice):
            return jax.tree.map(lambda _: P(SEQUENCE), node)
        return jax.tree.map(_spec_of_cache, node) if isinstance(node, KVCache) else P()

    return jax.tree.map(spec, tree, is_leaf=lambda node: isinstance(node, (PerDevice, KVCache)))


def _spec_of_cache(leaf: Any) -> P:
    sharding = getattr(leaf, "sharding", None)
    is_sharded = isinstance(sharding, NamedSharding) and SEQUENCE in sharding.spec
    return SHARDED_CACHE if is_sharded else CACHE


def mean_over_devices(x: jax.Array, config: LanguageConfig) -> jax.Array:
    """The mean over all heads of what each device has averaged over its own."""
    return x if config.axis is None else jax.lax.pmean(x, config.axis)


def _is_int4_on_gpu(params: Any) -> bool:
    """Whether a tree has weights in 4 bits on NVIDIA GPUs."""
    for leaf in jax.tree.leaves(params):
        if getattr(leaf, "dtype", None) == jnp.int4:
            sharding = getattr(leaf, "sharding", None)
            return sharding is not None and next(iter(sharding.device_set)).platform in ("gpu", "cuda")
    return False


class Program:
    """A jitted function that runs under `jax.shard_map` if its first argument is on a mesh.

    Then it is called with the configuration of a shard, and reduces over `config.language.axis` what must be complete.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: Sequence[str],
        donate_argnames: Sequence[str] = (),
        sharded_argnames: Sequence[str] = (),
        results: Any = None,
    ) -> None:
        """sharded_argnames: arguments that are sharded over all devices along their first axis; then so are all results.
        results: the PartitionSpecs of results on a mesh whose sequence axis has more than one device, if `specs_of` does not
        tell them."""
        functools.update_wrapper(self, function)
        self._function, self._signature, self._results = function, inspect.signature(function), results
        self._static, self._donated, self._sharded = set(static_argnames), set(donate_argnames), set(sharded_argnames)
        jit = functools.partial(
            jax.jit, function, static_argnames=tuple(static_argnames), donate_argnames=tuple(donate_argnames)
        )
        self._jitted, self._jitted_int4 = jit(), jit(compiler_options=_INT4_OPTIONS)
        self._on_meshes: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mesh = mesh_of(args[0])
        if mesh is None:
            return self._for(args[0])(*args, **kwargs)
        function, arrays = self._on(mesh, *args, **kwargs)
        return function(*arrays)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As that of a jitted function. Shapes are on a mesh if they have its sharding."""
        mesh = mesh_of(args[0])
        if mesh is None:
            return self._for(args[0]).lower(*args, **kwargs)
        function, arrays = self._on(mesh, *args, **kwargs)
        return function.lower(*arrays)

    def _for(self, params: Any) -> Any:
        """The jitted function for parameters on one device."""
        return self._jitted_int4 if _is_int4_on_gpu(params) else self._jitted

    def _on(self, mesh: Mesh, *args: Any, **kwargs: Any) -> tuple[Any, tuple[dict[str, Any], dict[str, Any]]]:
        """(the jitted function for a mesh, its arguments: donated ones and others)."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        static = {name: value for name, value in bound.arguments.items() if name in self._static}
        arrays = {name: value for name, value in bound.arguments.items() if name not in self._static}
        # Not those of parameters, which are many and always the same.
        others = {name: value for name, value in arrays.items() if name != "params"}
        specs = _specs_of_arguments(others)
        key = (mesh, tuple(static.items()), jax.tree.structure(arrays), tuple(jax.tree.leaves(specs)))
        if key not in self._on_meshes:
            self._on_meshes[key] = self._build(mesh, static, arrays, specs)
        donated = {name: arrays.pop(name) for name in list(arrays) if name in self._donated}
        return self._on_meshes[key], (donated, arrays)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_jitted"], name)

    def _build(
        self, mesh: Mesh, static: dict[str, Any], arrays: dict[str, Any], specs: dict[str, Any]
    ) -> Callable[..., Any]:
        """specs: of all arguments but the parameters."""
        local, shape = dict(static), shape_of(mesh)
        if "config" in local:
            local["config"] = shard_config(local["config"], shape)

        def run(donated: dict[str, Any], kept: dict[str, Any]) -> Any:
            return self._function(**donated, **kept, **local)

        everywhere = P(mesh.axis_names)
        specs |= {name: param_specs(value, shape.model) for name, value in arrays.items() if name == "params"}
        specs |= {name: everywhere for name in arrays if name in self._sharded}
        if self._sharded:
            out_specs = everywhere
        elif self._results is not None and shape.sequence > 1:
            out_specs = self._results
        else:
            out_specs = specs_of(jax.eval_shape(lambda values: self._function(**values, **static), arrays))
        donated = {name: specs[name] for name in specs if name in self._donated}
        kept = {name: specs[name] for name in specs if name not in self._donated}
        sharded = jax.shard_map(run, mesh=mesh, in_specs=(donated, kept), out_specs=out_specs, check_vma=False)
        options = _INT4_OPTIONS if _is_int4_on_gpu(arrays.get("params")) else None
        return jax.jit(sharded, donate_argnums=0, compiler_options=options)


def program(
    *, static: Sequence[str], donated: Sequence[str] = (), results: Any = None
) -> Callable[[Callable[..., Any]], Program]:
    """Decorate a function that is to be a `Program`."""

    def decorate(function: Callable[..., Any]) -> Program:
        return Program(function, static, donated, results=results)

    return decorate
