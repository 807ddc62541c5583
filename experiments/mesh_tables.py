"""The two tables of docs/how-to/devices.md: which mesh a video takes, and how the time grows with the number of devices.

    python -m experiments.mesh_tables

Every figure is of `vxl2_jax.planning`, for the real model at a frame a second: bytes as `vxl2 plan` counts them, operations
divided by peak rates, and what is sent divided by the rates of links. They are estimates, and lower bounds of the time. Nothing is
measured. The page has each table between marks, `<!-- meshes -->` and `<!-- scaling -->`, and a test compares them.
"""

from __future__ import annotations

from experiments import start
from vxl2_jax import planning
from vxl2_jax.layout import PrefillRule
from vxl2_jax.models.quantised import INT8, WIDE
from vxl2_jax.planning import DEVICES, Plan
from vxl2_jax.tensor_parallel import MeshShape

FRAMES = (2_048, 10_000, 30_000, 100_000)
SLICES = {
    "2 × T4": ("t4", 2, INT8, INT8),
    "v5e-8": ("v5e", 8, INT8, INT8),
    "v5e-16": ("v5e", 16, INT8, INT8),
    "v6e-8": ("v6e", 8, WIDE, WIDE),
    "4 × A100 80 GB": ("a100-80", 4, INT8, INT8),
    "8 × H100": ("h100", 8, WIDE, WIDE),
}
"""Heading → device, how many, weights and cache."""
SCALED, PER_DEVICE = ("v5e", INT8, INT8), 4_096
"""What the table of scaling is about, and how many frames each device has."""


def planned(frames: int, device: str, mesh: MeshShape, weights: str, cache: str) -> Plan:
    """What so many frames take on a mesh."""
    config, tokenizer = planning.model_of("video-xl-2")
    layout = planning.layout_for(config, tokenizer, frames, fps=1.0)
    settings = {**DEVICES[device].settings(config, cache=cache), "weights": weights, "cache": cache}
    return planning.plan(config, layout, PrefillRule(), **settings, devices=mesh.model, sequence=mesh.sequence)


def best(frames: int, device: str, count: int, weights: str, cache: str) -> tuple[MeshShape, Plan]:
    """The fastest mesh on which so many frames fit, and the plan for it."""
    config, tokenizer = planning.model_of("video-xl-2")
    layout = planning.layout_for(config, tokenizer, frames, fps=1.0)
    mesh = planning.best_mesh(config, layout, PrefillRule(), count, DEVICES[device], weights=weights, cache=cache)
    return mesh, planned(frames, device, mesh, weights, cache)


def cell(device: str, mesh: MeshShape, plan: Plan) -> str:
    """The mesh, the peak of one device, and the least time to compute and to communicate."""
    peak = f"{plan.peak_bytes / 1e9:.1f} GB"
    if not plan.fits(DEVICES[device]):
        return f"– ({peak})"
    times = f"{plan.seconds(DEVICES[device]):.1f} + {plan.communication_seconds(DEVICES[device]):.2f} s"
    return f"{mesh.model} × {mesh.sequence}: {peak}, {times}"


def mesh_table() -> str:
    """Markdown: lengths by slices."""
    lines = [["frames", *SLICES], ["--:"] * (len(SLICES) + 1)]
    for frames in FRAMES:
        lines.append([f"{frames:,}", *(cell(slice_[0], *best(frames, *slice_)) for slice_ in SLICES.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scaling_table() -> str:
    """Markdown: as many times the frames on as many times the devices."""
    device, weights, cache = SCALED
    spec, lines = DEVICES[device], [["chips", "frames", "GB", "computing", "communication", "frames a second a chip"]]
    lines.append(["--:"] * len(lines[0]))
    for count in (1, 2, 4, 8, 16):
        plan = planned(count * PER_DEVICE, device, MeshShape(1, count), weights, cache)
        computing, communication = plan.seconds(spec), plan.communication_seconds(spec)
        rate = PER_DEVICE / (computing + communication)
        figures = [f"{plan.peak_bytes / 1e9:.1f}", f"{computing:.1f} s", f"{communication:.2f} s", f"{rate:.0f}"]
        lines.append([str(count), f"{count * PER_DEVICE:,}", *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_) -> None:
    print(mesh_table(), scaling_table(), sep="\n\n")


if __name__ == "__main__":
    start.run(main, start.no_flags)
