"""GPUs and TPUs that plans are made for: memory, peak rate, and what JAX reports of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels import attention
from vxl2_jax import hardware
from vxl2_jax.config import ModelConfig
from vxl2_jax.hardware import BatchSizes
from vxl2_jax.models.quantised import INT8, WIDE

USABLE = 0.95
"""Fraction of a device's memory that arrays can use; the runtime takes the rest."""


class DeviceSpec(NamedTuple):
    """A device that need not be present.

    Attributes:
      memory_gb: memory in 10⁹ bytes.
      usable_gb: the part of it that arrays can use, where it is known; otherwise `USABLE` times the memory.
      link_gb: 10⁹ bytes per second that one device can send to the others of a machine or a slice, all links together; 0 if it
        is unknown.
      tflops: peak rate of 16-bit matrix products, in 10¹² operations per second.
      device_kind, compute_capability: as JAX reports them, so that dtype, kernel and batch sizes are chosen as on the
        machine itself.
    """

    memory_gb: float
    tflops: float
    device_kind: str
    compute_capability: str = ""
    usable_gb: float | None = None
    link_gb: float = 0

    @property
    def platform(self) -> str:
        """JAX's name of the platform: gpu, tpu or cpu."""
        if self.device_kind == "cpu":
            return "cpu"
        return "gpu" if self.compute_capability else "tpu"

    @property
    def sizes(self) -> BatchSizes:
        """The batch sizes on this device."""
        return hardware.sizes_for(self)

    @property
    def usable_bytes(self) -> float:
        """Bytes that arrays can use."""
        return 1e9 * (USABLE * self.memory_gb if self.usable_gb is None else self.usable_gb)

    def settings(self, config: ModelConfig, itemsize: int = 2, cache: str = WIDE) -> dict[str, Any]:
        """The fields of `memory_model.Workload` that the device determines.

        cache: one of `options.CACHES`.
        """
        dtype = jnp.dtype(jnp.float32 if itemsize == 4 else hardware.default_dtype(self))
        cached = jnp.int8 if cache == INT8 else dtype
        width = config.language.head_width
        kernel = attention.choose_kernel(dtype=dtype, width=width, cache_dtype=cached, device=self).kernel
        return {"itemsize": itemsize, "sizes": self.sizes, "kernel": kernel, "compiler": hardware.compiler_for(self)}


DEVICES = {
    "t4": DeviceSpec(16, 65, "Tesla T4", "7.5", usable_gb=14.6, link_gb=16),
    "l4": DeviceSpec(24, 121, "NVIDIA L4", "8.9", usable_gb=22.4, link_gb=32),
    "a100-40": DeviceSpec(40, 312, "NVIDIA A100-SXM4-40GB", "8.0", link_gb=300),
    "a100-80": DeviceSpec(80, 312, "NVIDIA A100-SXM4-80GB", "8.0", link_gb=300),
    "h100": DeviceSpec(80, 989, "NVIDIA H100 80GB HBM3", "9.0", link_gb=450),
    "h200": DeviceSpec(141, 790, "NVIDIA H200", "9.0", link_gb=450),
    "v4": DeviceSpec(32, 275, "TPU v4", link_gb=150),
    "v5e": DeviceSpec(17.2, 197, "TPU v5 lite", usable_gb=16.9, link_gb=100),
    "v5p": DeviceSpec(95, 459, "TPU v5", link_gb=300),
    "v6e": DeviceSpec(32, 918, "TPU v6 lite", link_gb=224),
}
"""From the makers' data sheets, except the H200's rate: that of products of random bfloat16 matrices (BUILD-notes.md).
A v5e chip has 16 GiB, of which its compiler gives a program 15.75. Rates of links are half of what the data sheets
give for both directions: NVLink of A100 and H100, PCIe of T4 (3.0) and L4 (4.0), the interconnects of TPUs."""
