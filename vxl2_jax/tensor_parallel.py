"""Inference with one model on several devices: heads, MLP channels and vocabulary are split (arXiv 1909.08053).

Each device has its share of the language model's weights and of the key/value caches, and runs the same program on them.
Activations are whole on every device. A layer communicates twice, where the shares' products are summed. The weights of
the vision half are whole on every device, and its frames are split.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.kv_cache import KVCache
from vxl2_jax.config import LanguageConfig, ModelConfig, SplitLanguageConfig
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.models.quantised import QuantisedWeight, bytes_of, is_quantised

AXIS = SplitLanguageConfig.axis
"""The mesh axis over which a model is split."""
_BY_OUTPUT, _BY_INPUT = ("query", "key", "value", "gate", "up"), ("out", "down")
CACHE = P(None, AXIS)
"""How a cache [L, K, S, D] is split: by key head."""


def parse(text: str | None) -> int:
    """The number of devices in a text such as "model=4"; 1 for None. Raises RequestError."""
    if text is None:
        return 1
    found = re.fullmatch(rf"{AXIS}=([1-9]\d{{0,3}})", text) if isinstance(text, str) else None
    if not found:
        raise RequestError(f"mesh must be {AXIS}=N, for N devices, not {shown(text)}")
    return int(found[1])


def make_mesh(config: ModelConfig, ways: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `ways` devices. Raises RequestError if there are fewer, or the model cannot be split so."""
    devices = list(jax.local_devices() if devices is None else devices)
    if ways > len(devices):
        raise RequestError(
            f"mesh {AXIS}={ways} needs {ways} devices, but there are {len(devices)}; choose a smaller one"
        )
    check_divides(config, ways)
    return Mesh(np.asarray(devices[:ways]), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def check_divides(config: ModelConfig, ways: int) -> None:
    """Raise RequestError if the model cannot be split so many ways."""
    lm = config.language
    sizes = {"key/value heads": lm.kv_heads, "MLP channels": lm.mlp, "width": lm.width, "vocabulary": lm.vocabulary}
    for name, size in sizes.items():
        if size % ways:
            raise RequestError(f"mesh {AXIS}={ways} does not divide the model's {name}, {size}; choose a divisor")


def share_of(config: ModelConfig, ways: int) -> ModelConfig:
    """The configuration of one device's share."""
    if ways == 1:
        return config
    whole = {item.name: getattr(config.language, item.name) for item in fields(LanguageConfig)}
    counts = {name: whole[name] // ways for name in ("heads", "kv_heads", "mlp")}
    return replace(config, language=SplitLanguageConfig(**{**whole, **counts}))


def shard(mesh: Mesh, params: Any) -> Any:
    """Place parameters, which are donated, on the devices of a mesh, one array after another.

    Raises RequestError for 4-bit weights whose groups do not divide.
    """

    def place(leaf: jax.Array, spec: P) -> jax.Array:
        return jax.block_until_ready(jax.device_put(leaf, NamedSharding(mesh, spec), donate=True))

    leaves, structure = jax.tree.flatten(params)
    specs = structure.flatten_up_to(param_specs(params, mesh.size))
    return structure.unflatten([place(leaf, spec) for leaf, spec in zip(leaves, specs, strict=True)])


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh over which the first array of a tree is placed; None for one device."""
    leaf = next(iter(jax.tree.leaves(tree)), None)
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) or isinstance(leaf, jax.core.Tracer):
        return None
    found = leaf.sharding
    mesh = found.mesh if isinstance(found, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.axis_names == (AXIS,) else None


def cache_sharding(params: Any) -> NamedSharding | None:
    """Where the caches of a model with these parameters are; None for the default device."""
    mesh = mesh_of(params)
    return None if mesh is None else NamedSharding(mesh, CACHE)


def device_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def share_bytes(params: Any, ways: int) -> int:
    """Bytes of one device's share of parameters, which may be shapes."""
    leaves, structure = jax.tree.flatten(params)
    specs = structure.flatten_up_to(param_specs(params, ways))

    def share(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
        shape = [size // ways if axis else size for size, axis in zip_longest(leaf.shape, spec)]
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return bytes_of([share(leaf, spec) for leaf, spec in zip(leaves, specs, strict=True)])


def param_specs(params: Any, ways: int) -> Any:
    """How each array of a parameter tree is split, in a tree of the same structure."""

    def spec(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        axis = _split_axis(names)
        if not is_quantised(leaf):
            return _split(leaf.ndim, axis)
        return QuantisedWeight(
            _split(leaf.values.ndim, axis), _split_scale(leaf, axis, ways), leaf.group, leaf.activations
        )

    return jax.tree_util.tree_map_with_path(spec, params, is_leaf=is_quantised)


def _split_axis(names: Sequence[str]) -> int | None:
    """The axis of a parameter, counted from the last, that is split."""
    if names[0] != "language":
        return None
    if names[1:] in (["embed"], ["head"]):
        return -1
    if names[-2] in _BY_OUTPUT:
        return -1
    return -2 if names[-2] in _BY_INPUT and names[-1] == "kernel" else None


def _split(ndim: int, axis: int | None) -> P:
    return P(*(AXIS if axis is not None and number == ndim + axis else None for number in range(ndim)))


def _split_scale(weight: QuantisedWeight, axis: int | None, ways: int) -> P:
    """A scale is split as its weight is, along axes that it has."""
    scale = weight.scale
    if axis is None or scale.shape[axis] == 1:
        return P()
    if axis == -2 and (weight.values.shape[-2] // ways) % (weight.group or 1):
        raise RequestError(f"mesh {AXIS}={ways} divides the groups of {weight.group} weights of int4; use int8")
    return _split(scale.ndim, axis)


def specs_of(tree: Any) -> Any:
    """How arguments or results are split: caches by key head, everything else is whole on every device."""

    def spec(node: Any) -> Any:
        return jax.tree.map(lambda _: CACHE, node) if isinstance(node, KVCache) else P()

    return jax.tree.map(spec, tree, is_leaf=lambda node: isinstance(node, KVCache))


def mean_over_shares(x: jax.Array, config: LanguageConfig) -> jax.Array:
    """The mean over the devices' heads of what each has averaged over its own."""
    return x if config.axis is None else jax.lax.pmean(x, config.axis)


class Program:
    """A jitted function. If its first argument is on a mesh, it runs on all devices of the mesh, each on its share.

    The function is called with the share's configuration. It sums over `config.language.axis` what is needed whole.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: Sequence[str],
        donate_argnames: Sequence[str] = (),
        split_argnames: Sequence[str] = (),
    ) -> None:
        """split_argnames: arguments that are split along their first axis; then so are all results."""
        functools.update_wrapper(self, function)
        self._function, self._signature = function, inspect.signature(function)
        self._static, self._donated, self._split = set(static_argnames), set(donate_argnames), set(split_argnames)
        self._jitted = jax.jit(function, static_argnames=tuple(static_argnames), donate_argnames=tuple(donate_argnames))
        self._on_meshes: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mesh = mesh_of(args[0])
        if mesh is None:
            return self._jitted(*args, **kwargs)
        function, arrays = self._on(mesh, *args, **kwargs)
        return function(*arrays)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As that of a jitted function. Shapes are on a mesh if they have its sharding."""
        mesh = mesh_of(args[0])
        if mesh is None:
            return self._jitted.lower(*args, **kwargs)
        function, arrays = self._on(mesh, *args, **kwargs)
        return function.lower(*arrays)

    def _on(self, mesh: Mesh, *args: Any, **kwargs: Any) -> tuple[Any, tuple[dict[str, Any], dict[str, Any]]]:
        """(the jitted function for a mesh, its arguments: donated ones and others)."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        static = {name: value for name, value in bound.arguments.items() if name in self._static}
        arrays = {name: value for name, value in bound.arguments.items() if name not in self._static}
        key = (mesh, tuple(static.items()), jax.tree.structure(arrays))
        if key not in self._on_meshes:
            self._on_meshes[key] = self._build(mesh, static, arrays)
        donated = {name: arrays.pop(name) for name in list(arrays) if name in self._donated}
        return self._on_meshes[key], (donated, arrays)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_jitted"], name)

    def _build(self, mesh: Mesh, static: dict[str, Any], arrays: dict[str, Any]) -> Callable[..., Any]:
        share = dict(static)
        if "config" in share:
            share["config"] = share_of(share["config"], mesh.size)

        def run(donated: dict[str, Any], kept: dict[str, Any]) -> Any:
            return self._function(**donated, **kept, **share)

        specs = {
            name: param_specs(value, mesh.size)
            if name == "params"
            else P(AXIS)
            if name in self._split
            else specs_of(value)
            for name, value in arrays.items()
        }
        results = jax.eval_shape(lambda values: self._function(**values, **static), arrays)
        out_specs = P(AXIS) if self._split else specs_of(results)
        donated = {name: specs[name] for name in specs if name in self._donated}
        kept = {name: specs[name] for name in specs if name not in self._donated}
        sharded = jax.shard_map(run, mesh=mesh, in_specs=(donated, kept), out_specs=out_specs, check_vma=False)
        return jax.jit(sharded, donate_argnums=0)


def program(
    *, static: Sequence[str], donated: Sequence[str] = (), split: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Program]:
    """Decorate a function that is to be a `Program`."""

    def decorate(function: Callable[..., Any]) -> Program:
        return Program(function, static, donated, split)

    return decorate
