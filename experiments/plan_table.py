"""The table of what videos cost in docs/results/speed.md: peak memory and least time, by length and machine.

    python -m experiments.plan_table

Every figure is of `vxl2_jax.planning`, for the real model in 16 bits, at a frame a second, blocks of 4 groups and 3
earlier ones, one question with 4 chunks dense between the first and the last. Nothing is measured. The page has what
is printed between two marks, `<!-- plan table -->` and `<!-- /plan table -->`, and a test compares them.
"""

from __future__ import annotations

import json

from absl import flags

from experiments import start
from vxl2_jax import planning
from vxl2_jax.layout import PrefillRule
from vxl2_jax.planning import DEVICES, DeviceSpec, Plan

FRAMES = (256, 600, 1_024, 2_048, 4_096, 10_000, 20_000)
COLUMNS = {
    "T4 16 GB": "t4",
    "L4 24 GB": "l4",
    "v5e 16 GB": "v5e",
    "A100 40 GB": "a100-40",
    "A100 80 GB": "a100-80",
    "v6e 32 GB": "v6e",
    "H200 141 GB": "h200",
}
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON document alone on standard output.")


def plan_for(frames: int, device: DeviceSpec) -> Plan:
    """What so many frames take on a device."""
    config, tokenizer = planning.model_of("video-xl-2")
    layout = planning.layout_for(config, tokenizer, frames, fps=1.0)
    return planning.plan(config, layout, PrefillRule(), **device.settings(config))


def rows() -> list[dict]:
    """One document a length."""
    found = []
    for frames in FRAMES:
        plans = {heading: plan_for(frames, DEVICES[name]) for heading, name in COLUMNS.items()}
        devices, some = [DEVICES[name] for name in COLUMNS.values()], next(iter(plans.values()))
        mixed, dense = some.cache_bytes
        found.append(
            {
                "frames": frames,
                "tokens": some.layout.length,
                "pairs_saved": 1 - some.attention_pairs_kept / some.attention_pairs_causal,
                "cache_saved": 1 - mixed / dense,
                "weights_bytes": some.bytes["weights"],
                "devices": {
                    heading: {
                        "peak_bytes": plan.peak_bytes,
                        "seconds": plan.seconds(device),
                        "fits": plan.fits(device),
                        "model_fits": plan.bytes["weights"] <= device.usable_bytes,
                    }
                    for (heading, plan), device in zip(plans.items(), devices, strict=True)
                },
            }
        )
    return found


def cell(found: dict) -> str:
    """Peak and least time; in brackets and without a time where it does not fit."""
    peak = f"{found['peak_bytes'] / 1e9:.1f} GB"
    return f"{peak}, {found['seconds']:.1f} s" if found["fits"] else f"– ({peak})"


def table(found: list[dict]) -> str:
    """Markdown."""
    without = [heading for heading, one in found[0]["devices"].items() if not one["model_fits"]]
    able = [heading for heading in COLUMNS if heading not in without]
    titles = ["frames", "tokens", "pairs saved", "cache saved", *able, ", ".join(without)]
    lines = [titles, ["--:"] * (len(titles) - 1) + ["---"]]
    for row in found:
        lines.append(
            [
                f"{row['frames']:,}",
                f"{row['tokens']:,}",
                f"{100 * row['pairs_saved']:.1f} %",
                f"{100 * row['cache_saved']:.1f} %",
                *(cell(row["devices"][heading]) for heading in able),
                f"– (weights alone: {row['weights_bytes'] / 1e9:.1f} GB)",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_) -> None:
    found = rows()
    print(json.dumps(found, indent=1) if _JSON.value else table(found))


if __name__ == "__main__":
    start.run(main, uses_absl=True)
