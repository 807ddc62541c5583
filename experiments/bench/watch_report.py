"""Results of bench_watch.py: a document that is written after every length, as JSON, Markdown tables and a plot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from statistics import median
from typing import Any

from experiments.bench import against
from experiments.bench.growth import exponent
from experiments.bench.report import replace

_MIB, _GIB = 2**20, 2**30
STAGES = ("read", "vision", "prefill", "sparse", "other")
_PARTS = {"vision": ("vision", "dts", "projector"), "prefill": ("language_linear", "attention")}
"""Which operations a stage does."""


def stages(run: dict) -> dict[str, float]:
    """Seconds of a run in which nothing was compiled, by stage."""
    took, sparse = run["timings"], run["sparse_s"]
    found = {"read": took["read"], "vision": took["vision"], "prefill": took["prefill"] - sparse, "sparse": sparse}
    return {**found, "other": run["total_s"] - sum(found.values())}


def summary(row: dict, ceilings: dict | None) -> dict:
    """Figures of one length from its runs: medians of all but the first, which compiles. {} without such a run."""
    if len(row["runs"]) < 2 or "flops" not in row:
        return {}
    first, *later = row["runs"]
    by_stage = [stages(run) for run in later]
    typical = {stage: median(run[stage] for run in by_stage) for stage in STAGES}
    total = median(run["total_s"] for run in later)
    flops = {stage: sum(row["flops"][part] for part in parts) for stage, parts in _PARTS.items()}
    rates = {stage: flops[stage] / typical[stage] for stage in flops} | {"total": sum(flops.values()) / total}
    return {
        "stages": typical,
        "total_s": total,
        "compiling_s": first["total_s"] - total,
        "frames_per_s": row["frames"] / total,
        "flops_per_s": rates,
        "cache_bytes": first["cache_bytes"],
        "peak_bytes": max(run["peak_bytes"] for run in row["runs"]),
        "watching_bytes": max(run["peak_bytes"] - run["before_bytes"] for run in later),
        "share_of_ceiling": {stage: rate / ceilings["flops"] for stage, rate in rates.items()} if ceilings else None,
    }


class Document:
    """What has been measured so far. `quiet`: print no tables."""

    def __init__(self, folder: Path, used: dict[str, Any], *, quiet: bool):
        self.folder, self.used, self.quiet = folder, used, quiet
        self.machine: dict[str, Any] = {}
        self.ceilings: dict[str, Any] | None = None
        self.watched: list[dict] = []
        self.compared: list[dict] = []
        self.complete = False

    def start(self, described: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.machine, self.ceilings = described["machine"], described["ceilings"]
        self._print(self.heading())

    def add_watched(self, row: dict) -> None:
        self.watched.append({**row, **summary(row, self.ceilings)})
        self._print("\n".join(_watched_lines(self.watched[-1:])[0 if len(self.watched) == 1 else 2 :]))
        self._write()

    def add_compared(self, row: dict) -> None:
        self.compared.append(row)
        self._print("\n" + "\n".join(_compared_lines([row])))
        self._write()

    def finish(self) -> None:
        """The last writing, with the plot; nothing where nothing began."""
        if self.machine:
            self._print("\n" + "\n".join(self._growth_lines()))
            self._write()
            replace(self.folder / "watch.png", self._plot())
            self._print(f"\nwritten: {', '.join(str(self.folder / f'watch.{kind}') for kind in ('json', 'md', 'png'))}")

    @property
    def wrong(self) -> str:
        """What must not be: one line, or ""."""
        found = [f"caches differ at {row['frames']} frames" for row in self.compared if row.get("wrong")]
        unlike = [row for row in self.compared if (row.get("golden") or {"worst": 0})["worst"] > 1]
        return "; ".join([*found, *["the baseline does not reproduce the golden logits"][: len(unlike)]])

    def growth(self) -> dict[str, float | None]:
        """Exponents over length: seconds by stage and in all, bytes; of the comparison, of both sides."""
        done = [row for row in self.watched if "total_s" in row]
        frames = [row["frames"] for row in done]
        fits = {f"{stage}_s": [row["stages"][stage] for row in done] for stage in ("vision", "prefill", "sparse")}
        fits |= {name: [row[name] for row in done] for name in ("total_s", "watching_bytes", "cache_bytes")}
        found = {name: exponent(frames, values) for name, values in fits.items()} if done else {}
        for side in against.SCRIPTS:
            rows = [row for row in self.compared if row.get(side)]
            for name in ("median_s", "above_bytes"):
                values = [row[side][name] for row in rows]
                found[f"{side}_{name}"] = exponent([row["frames"] for row in rows], values) if rows else None
        return {name: fit for name, fit in found.items() if fit is not None}

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": "watch",
            "complete": self.complete,
            **self.machine,
            "flags": self.used,
            "ceilings": self.ceilings,
            "rows": self.watched,
            "against": self.compared,
            "growth": self.growth(),
            "target": {"times_faster": against.FASTER, "memory_share": against.SMALLER, "from_frames": 600},
        }

    def heading(self) -> str:
        about, top = self.machine, self.ceilings
        ceiling = f" Ceiling of this run: {top['flops'] / 1e12:.4g} TFLOP/s ({top['product']})." if top else ""
        return (
            f"`bench_watch` on {about['device']}, {about['cores']} cores (load {about['load']:.1f} before); "
            f"jax {about['jax']}; Python {about['python']}; commit {about['commit'] or 'unknown'}; "
            f"{about['date']}.{ceiling}\n"
        )

    def table(self) -> str:
        lines = [self.heading(), *_watched_lines(self.watched), "", *self._growth_lines()]
        if self.compared:
            lines += ["", *_compared_lines(self.compared)]
        return "\n".join([*lines, ""])

    def _growth_lines(self) -> list[str]:
        found = self.growth()
        named = ", ".join(f"{name} {fit:.2f}" for name, fit in found.items())
        return [f"Growth, exponents over the number of frames: {named}."] if found else []

    def _print(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def _write(self) -> None:
        replace(self.folder / "watch.json", json.dumps(self.as_json(), indent=1) + "\n")
        replace(self.folder / "watch.md", self.table())

    def _plot(self) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        done = [row for row in self.watched if "total_s" in row]
        both = [row for row in self.compared if row.get("ours") and row.get("torch")]
        figure = Figure(figsize=(10, 8 if both else 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2 if both else 1, 2, squeeze=False)
        frames, growth = [row["frames"] for row in done], self.growth()

        def label(name, key):
            return f"{name}: frames^{growth[key]:.2f}" if key in growth else name

        for stage in ("vision", "prefill", "sparse"):
            name = {"prefill": "pre-fill", "sparse": "sparse level"}.get(stage, stage)
            axes[0, 0].plot(frames, [row["stages"][stage] for row in done], "o-", label=label(name, f"{stage}_s"))
        axes[0, 0].plot(frames, [row["total_s"] for row in done], "ks-", label=label("all", "total_s"))
        axes[0, 0].set(ylabel="seconds", title="watching, by stage")
        for name in ("watching_bytes", "cache_bytes"):
            text = {"watching_bytes": "peak above the model", "cache_bytes": "of it, the memory that remains"}[name]
            axes[0, 1].plot(frames, [row[name] / _GIB for row in done], "o-", label=label(text, name))
        axes[0, 1].set(ylabel="GiB", title="memory of watching")
        panels = (("median_s", 1, "seconds", "time"), ("above_bytes", _GIB, "GiB", "peak above what was loaded"))
        for column, (key, scale, unit, what) in enumerate(panels if both else ()):
            axis = axes[1, column]
            for side, name in (("ours", "ours, by strides"), ("torch", "PyTorch SDPA, boolean mask")):
                values = [row[side][key] / scale for row in both]
                axis.plot([row["frames"] for row in both], values, "o-", label=label(name, f"{side}_{key}"))
            axis.set(ylabel=unit, title=f"pre-filling: {what}")
        for axis in axes.flat:
            if axis.lines and any(len(line.get_xdata()) for line in axis.lines):
                axis.set(xscale="log", yscale="log")
                axis.legend(fontsize=8, frameon=False)
            axis.set_xlabel("frames")
            axis.grid(which="major", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        about = self.machine
        title = f"bench_watch: {about['device']}, commit {about['commit'] or 'unknown'}, {about['date'][:10]}"
        figure.suptitle(title, fontsize=10)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120, metadata={"Title": title})
        return image.getvalue()


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _watched_lines(rows: list[dict]) -> list[str]:
    columns = (
        "frames", "tokens", "vision s", "pre-fill s", "sparse s", "other s", "all s", "first run s", "frames/s",
        "TFLOP", "TFLOP/s", "of the ceiling", "peak MiB", "watching MiB", "planned MiB", "cache MiB", "note",
    )  # fmt: skip
    return [_line(columns), _line(["---"] * len(columns)), *(_line(_watched_cells(row)) for row in rows)]


def _watched_cells(row: dict) -> list[str]:
    if "total_s" not in row:
        first = f"{row['runs'][0]['total_s']:.3g}" if row["runs"] else "–"
        return [str(row["frames"]), str(row.get("tokens", "–")), *["–"] * 5, first, *["–"] * 8, row["note"]]
    took, share = row["stages"], row["share_of_ceiling"]
    return [
        str(row["frames"]),
        str(row["tokens"]),
        *(f"{took[stage]:.3g}" for stage in ("vision", "prefill", "sparse")),
        f"{took['read'] + took['other']:.3g}",
        f"{row['total_s']:.3g}",
        f"{row['runs'][0]['total_s']:.3g}",
        f"{row['frames_per_s']:.4g}",
        f"{sum(row['flops'].values()) / 1e12:.3g}",
        f"{row['flops_per_s']['total'] / 1e12:.3g}",
        f"{100 * share['total']:.1f} %" if share else "–",
        *(f"{row[name] / _MIB:.0f}" for name in ("peak_bytes", "watching_bytes", "planned_bytes", "cache_bytes")),
        row["note"],
    ]


def _compared_lines(rows: list[dict]) -> list[str]:
    columns = (
        "frames", "pre-fill by", "median s", "core-seconds", "peak above MiB", "loaded MiB", "peak MiB", "threads",
        "with",
    )  # fmt: skip
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in rows:
        for side in against.SCRIPTS:
            if found := row.get(side):
                mib = (f"{found[name] / _MIB:.0f}" for name in ("above_bytes", "loaded_bytes", "peak_bytes"))
                times = f"{found['median_s']:.3f}", f"{found['core_s']:.3f}"
                lines.append(_line([row["frames"], side, *times, *mib, found["threads"], found["about"]]))
    return [*lines, "", *(_verdict(row) for row in rows)]


def _verdict(row: dict) -> str:
    parts = list(row["notes"])
    if "times_faster" in row:

        def word(reached):
            return "reached" if reached else "missed"

        parts = [
            f"{row['tokens']} tokens: PyTorch{', stopping early too,' if row['torch_stops_early'] else ''} has "
            f"{row['flops']['torch'] / row['flops']['ours']:.2f} × the operations",
            f"ours {row['times_faster']:.2f} × as fast (target {against.FASTER:g}: {word(row['fast_enough'])}; half of the "
            f"{len(row['ours']['seconds'])} pairs of runs between {row['pairs'][0]:.2f} and {row['pairs'][1]:.2f}), "
            f"{row['times_fewer_core_s']:.2f} × by core-seconds, which other work on the machine disturbs less",
            f"at {row['memory_share']:.2f} of the peak above what was loaded "
            f"(target {against.SMALLER:g}: {word(row['small_enough'])})",
            f"caches differ by {row['difference']:.1e} of their size{' – WRONG' if row['wrong'] else ''}",
            f"golden logits of {row['golden']['runs']} runs within {row['golden']['worst']:.2f} of the tolerance",
            *parts,
        ]
    return f"{row['frames']} frames: {'; '.join(parts)}."
