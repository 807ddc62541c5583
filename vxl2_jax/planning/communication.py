"""What the devices of a mesh send each other while a video is watched, from the shapes that the programs communicate.

Collectives over n devices are counted as ring algorithms: in an all-reduce each device sends 2 (n − 1) / n of the array, in
a reduce-scatter (n − 1) / n of it, and in an all-gather n − 1 times its own part. `tests/targets` shows that the compiled
programs have these collectives and no others.
"""

from __future__ import annotations

from vxl2_jax import prefill, sequence_parallel
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.placement import Placement
from vxl2_jax.planning.memory_model import Workload, token_bytes
from vxl2_jax.tensor_parallel import shard_config

_F32 = 4


def sent_bytes(config: ModelConfig, layout: Layout, rule: PrefillRule, workload: Workload) -> dict[str, int]:
    """Bytes that one device sends while a video is watched.

    Returns: along each axis of the mesh, {"model": …, "sequence": …}.

    Raises:
      RequestError: a group attends to more groups before it than a stride has.
    """
    calls = -(-layout.groups // (workload.sizes.stride * workload.sequence))
    rows = workload.sizes.stride * layout.visual + prefill.global_rows(layout, workload.sizes.stride)
    return {
        "model": calls * _of_layers(config, workload, rows),
        "sequence": calls * _of_video(config, layout, rule, workload),
    }


def _of_layers(config: ModelConfig, workload: Workload, rows: int) -> int:
    """Bytes sent in one call along the axis `model`: two all-reduces of the residual stream [rows, E] in every layer but the
    last. The embeddings of the global tokens, which are few, are left out."""
    lm, ways = config.language, workload.devices
    return 2 * (lm.layers - 1) * 2 * (ways - 1) * rows * lm.width * workload.itemsize // ways


def _of_video(config: ModelConfig, layout: Layout, rule: PrefillRule, workload: Workload) -> int:
    """Bytes sent in one call along the axis `sequence`: in every layer the halo, and for the global tokens their queries, keys
    and values, and what is merged."""
    devices = workload.sequence
    if devices == 1:
        return 0
    lm = shard_config(config, workload.mesh).language
    placement = Placement(layout, devices, workload.sizes.stride)
    halo = sequence_parallel.halo_groups(rule, placement) * layout.visual
    kept = token_bytes(shard_config(config, workload.mesh), workload) // lm.layers
    rows = prefill.global_rows(layout, workload.sizes.stride)
    gathered = (devices - 1) * rows * (lm.heads + 2 * lm.kv_heads) * lm.head_width * workload.itemsize
    merged = (devices - 1) * rows * lm.heads * (lm.head_width + 3) * _F32
    return lm.layers * (halo * kept + gathered) + (lm.layers - 1) * merged
