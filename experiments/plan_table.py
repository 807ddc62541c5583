"""The table of what videos cost in docs/results/speed.md: peak memory and least time, by length and machine.

    python -m experiments.plan_table

Every figure is of `vxl2_jax.planning`, for the real model in 16 bits or, where a column says so, with weights and cache in
int8 (in 16 bits the weights do not fit a T4 or a v5e), at a frame a second, blocks of 4 groups and 3 earlier ones, one
question with 4 chunks dense between the first and the last. A video that fits only with the dense level in host memory is
planned so. Nothing is measured. The page has what
is printed between two marks, `<!-- plan table -->` and `<!-- /plan table -->`, and a test compares them.
"""

from __future__ import annotations

import json

from absl import flags

from experiments import start
from vxl2_jax import planning
from vxl2_jax.layout import PrefillRule
from vxl2_jax.models.quantised import INT8, WIDE
from vxl2_jax.options import DEVICE, HOST
from vxl2_jax.planning import DEVICES, DeviceSpec, Plan

FRAMES = (256, 600, 1_024, 2_048, 4_096, 10_000, 20_000)
COLUMNS = {
    "T4 16 GB, int8": ("t4", INT8),
    "v5e 16 GB, int8": ("v5e", INT8),
    "L4 24 GB, int8": ("l4", INT8),
    "L4 24 GB": ("l4", WIDE),
    "A100 40 GB, int8": ("a100-40", INT8),
    "A100 40 GB": ("a100-40", WIDE),
    "A100 80 GB": ("a100-80", WIDE),
    "v6e 32 GB": ("v6e", WIDE),
    "H200 141 GB": ("h200", WIDE),
}
"""Heading → device, and how weights and cache are held."""


def plan_for(frames: int, device: DeviceSpec, held: str = WIDE, place: str = DEVICE) -> Plan:
    """What so many frames take on a device. held: how weights and cache are held; place: of the dense level."""
    config, tokenizer = planning.model_of("video-xl-2")
    layout = planning.layout_for(config, tokenizer, frames, fps=1.0)
    settings = {"weights": held, "cache": held, "dense_level": place, **device.settings(config, cache=held)}
    return planning.plan(config, layout, PrefillRule(), **settings)


def fitting_plan(frames: int, device: DeviceSpec, held: str) -> Plan:
    """The plan with which so many frames fit a device, in host memory if they must; otherwise that of the device alone."""
    plans = [plan_for(frames, device, held, place) for place in (DEVICE, HOST)]
    return next((plan for plan in plans if plan.fits(device)), plans[0])


def rows() -> list[dict]:
    """One document a length."""
    found = []
    for frames in FRAMES:
        plans = {heading: fitting_plan(frames, DEVICES[name], held) for heading, (name, held) in COLUMNS.items()}
        some = next(iter(plans.values()))
        mixed, dense = some.cache_bytes
        found.append(
            {
                "frames": frames,
                "tokens": some.layout.length,
                "pairs_saved": 1 - some.attention_pairs_kept / some.attention_pairs_causal,
                "cache_saved": 1 - mixed / dense,
                "devices": {
                    heading: {
                        "weights": COLUMNS[heading][1],
                        "cache": COLUMNS[heading][1],
                        "weights_bytes": plan.bytes["weights"],
                        "peak_bytes": plan.peak_bytes,
                        "host_bytes": plan.host_bytes,
                        "seconds": plan.seconds(DEVICES[COLUMNS[heading][0]]),
                        "fits": plan.fits(DEVICES[COLUMNS[heading][0]]),
                    }
                    for heading, plan in plans.items()
                },
            }
        )
    return found


def cell(found: dict) -> str:
    """Peak, host memory after a plus sign, and least time; in brackets and without a time where it does not fit."""
    host = f" + {found['host_bytes'] / 1e9:.1f}" if found["host_bytes"] else ""
    peak = f"{found['peak_bytes'] / 1e9:.1f}{host} GB"
    return f"{peak}, {found['seconds']:.1f} s" if found["fits"] else f"– ({peak})"


def table(found: list[dict]) -> str:
    """Markdown."""
    titles = ["frames", "tokens", "pairs saved", "cache saved", *COLUMNS]
    lines = [titles, ["--:"] * len(titles)]
    for row in found:
        lines.append(
            [
                f"{row['frames']:,}",
                f"{row['tokens']:,}",
                f"{100 * row['pairs_saved']:.1f} %",
                f"{100 * row['cache_saved']:.1f} %",
                *(cell(row["devices"][heading]) for heading in COLUMNS),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_boolean("json", False, "Print one JSON document alone on standard output.")


def main(_) -> None:
    found = rows()
    print(json.dumps(found, indent=1) if flags.FLAGS.json else table(found))


if __name__ == "__main__":
    start.run(main, define_flags)
