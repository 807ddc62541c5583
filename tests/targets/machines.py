"""Machines that are not here, to compile for: one TPU core or GPU of each kind, by JAX's topologies.

Needs libtpu for TPUs and the CUDA plug-in for GPUs (no driver, no card). Run it in a separate process: both write to
standard error, and some errors abort the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

for _name, _value in {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
    os.environ.setdefault(_name, _value)

import jax
import numpy as np
from jax.experimental import topologies

from vxl2_jax.config import video_xl_2
from vxl2_jax.tensor_parallel import MeshShape, make_mesh

_SLICES = {("v5e", 8): "v5e:2x4", ("v5e", 16): "v5e:4x4", ("v6e", 8): "v6e:2x4"}
TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
GPUS = ("t4", "l4", "a100", "h100")
MEMORY_GB = {"t4": 14.6, "l4": 22.4, "v4": 16.4, "v5e": 16.9, "v5p": 95, "v6e": 32, "a100": 80, "h100": 80}
"""Memory (GB) of one device: for v4 and v5e the compiler's limit for a program (a v4 device of these topologies is one
of a chip's two cores), otherwise from the data sheets, the larger A100."""


def topology(name: str, devices: int = 1):
    """The topology of a machine; of GPUs, with so many cards; of "here", the devices that are present.

    Raises RuntimeError if its compiler is not installed.
    """
    if name == "here":
        return SimpleNamespace(devices=jax.devices())
    if name in TPUS:
        return topologies.get_topology_desc(topology_name=_SLICES.get((name, devices), TPUS[name]), platform="tpu")
    text = (Path(__file__).parent / f"{name}.txtpb").read_text()
    return topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x1x{devices}")


@contextmanager
def machine(name: str, shape: MeshShape = MeshShape()) -> Iterator[Any]:
    """Compile for `name` inside: yields abstract(shape, dtype, spec) → ShapeDtypeStruct placed on its devices.

    Several devices are the mesh of `vxl2_jax.tensor_parallel`; spec: how an array is split over it.
    """
    if name == "here":
        yield jax.ShapeDtypeStruct
        return
    found = topology(name, shape.devices).devices[: shape.devices]
    if shape.devices == 1:
        kinds = (jax.sharding.AxisType.Auto,)
        mesh = jax.sharding.Mesh(np.asarray(found), ("x",), axis_types=kinds)
    else:
        mesh = make_mesh(video_xl_2(), shape, found)

    def abstract(shape, dtype, spec=jax.sharding.PartitionSpec()):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    with jax.set_mesh(mesh), jax.default_device(found[0]):
        yield abstract
