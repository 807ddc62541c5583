"""A million hours of video on a thousand chips, on paper: the table of docs/how-to/many-videos.md.

    python -m experiments.scale_table

Films of an hour, 1280 × 720 at 30 frames per second, watched at a frame a second by the real model and asked one question. Times
of chips are those of `vxl2_jax.planning`: operations divided by peak rates, so lower bounds. Times of reading are its estimate
for H.264. Memory files are counted by their format. The time of a driver on Ray was measured with workers that do nothing
(`RAY_MS`). The page has what is printed between two marks, `<!-- scale table -->` and `<!-- /scale table -->`, and a test
compares them.
"""

from __future__ import annotations

from typing import NamedTuple

from experiments import start
from experiments.plan_table import fitting_plan
from vxl2_jax import planning
from vxl2_jax.models.quantised import INT8, WIDE
from vxl2_jax.planning import DEVICES, reading
from vxl2_jax.storage.memory_file import CacheShape

HOURS, CHIPS, FRAMES, COMPRESSION = 1_000_000, 1_000, 3_600, 4
FILM = reading.parse("1280x720@30")
COLUMNS = {
    "v5e 16 GB, int8": ("v5e", INT8),
    "L4 24 GB, int8": ("l4", INT8),
    "A100 80 GB": ("a100-80", WIDE),
    "v6e 32 GB": ("v6e", WIDE),
    "H200 141 GB": ("h200", WIDE),
}
"""Heading → device, and how weights and cache are held."""
RAY_MS = 20.0
"""Wall time of a job on a Ray cluster with two workers that do nothing: the mean of 3,000 jobs, driver, cluster and workers on the
same two cores (Ray 2.60)."""


class Scale(NamedTuple):
    """What the job takes on one kind of chip.

    Attributes:
      video_s: seconds of a chip for one film, at its peak rate.
      hours: of all chips for all films, at that rate.
      rate: films a second of all chips.
      cores: CPU cores for each chip, so that reading keeps up.
      weights_bytes: of one worker.
      memory_bytes: of the memory file of one film.
    """

    video_s: float
    hours: float
    rate: float
    cores: float
    weights_bytes: int
    memory_bytes: int


def scale(device: str, held: str) -> Scale:
    """The figures for a kind of chip. held: how weights and cache are held."""
    plan = fitting_plan(FRAMES, DEVICES[device], held)
    assert plan.fits(DEVICES[device])
    language = planning.model_of("video-xl-2")[0].language
    dtype = "int8" if held == INT8 else "bfloat16"
    shape = CacheShape(language.layers, language.kv_heads, language.head_width, dtype)
    rows = plan.layout.length + plan.layout.sparse_length(COMPRESSION)
    seconds = plan.seconds(DEVICES[device])
    return Scale(
        video_s=seconds,
        hours=HOURS * seconds / CHIPS / 3_600,
        rate=CHIPS / seconds,
        cores=reading.cpu_seconds(FILM, FRAMES, 1.0) / seconds,
        weights_bytes=plan.bytes["weights"],
        memory_bytes=shape.bytes(rows),
    )


def table() -> str:
    """Markdown: kinds of chips by what they take."""
    found = {heading: scale(*how) for heading, how in COLUMNS.items()}
    lines = {
        "a film on a chip, at least": lambda one: f"{one.video_s:.1f} s",
        "all films, at least": lambda one: f"{one.hours:.1f} hours",
        "films a second": lambda one: f"{one.rate:.0f}",
        "CPU cores a chip to read": lambda one: f"{one.cores:.1f}",
        "weights read at the start": lambda one: f"{CHIPS * one.weights_bytes / 1e12:.1f} TB",
        "memory files, if kept": lambda one: f"{HOURS * one.memory_bytes / 1e15:.1f} PB",
        "written meanwhile": lambda one: f"{one.rate * one.memory_bytes / 1e9:,.0f} GB/s",
        "load of one driver on Ray": lambda one: f"{one.rate * RAY_MS / 10:.0f} %",
    }
    cells = [["", *found], ["---", *["--:"] * len(found)]]
    cells += [[name, *map(write, found.values())] for name, write in lines.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main(_) -> None:
    print(table())


if __name__ == "__main__":
    start.run(main, start.no_flags)
