"""The roofline plot: rates reached over operations per byte, under the measured ceilings."""

from __future__ import annotations

import io

from experiments.bench.report import OURS, Report, replace

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22")
_MARKERS = "osD^vP*Xh<>p"


def draw(report: Report) -> None:
    """Write <name>.png beside the other results, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    top, about = report.ceilings, report.described
    rows = [row for row in report.rows if row.timing and row.bytes and row.flops]
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    ridge = top.flops / top.bytes
    intensities = [row.flops / row.bytes for row in rows] or [ridge]
    low, high = min(*intensities, ridge) / 3, max(*intensities, ridge) * 3
    roof = [low * top.bytes / 1e12, top.flops / 1e12, top.flops / 1e12]
    axis.plot([low, ridge, high], roof, color="black", linewidth=1.2)
    axis.annotate(f"{top.flops / 1e12:.4g} TFLOP/s", (high, top.flops / 1e12), ha="right", va="bottom", fontsize=8)
    axis.annotate(f"{top.bytes / 1e12:.3g} TB/s", (low, low * top.bytes / 1e12), ha="left", va="bottom", fontsize=8)
    names, cases = (list(dict.fromkeys(getattr(row, part) for row in rows)) for part in ("name", "case"))
    colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    marker = {case: _MARKERS[i % len(_MARKERS)] for i, case in enumerate(cases)}
    for row in rows:
        reached = row.flops / row.timing.seconds / 1e12
        style = {"color": colour[row.name], "marker": marker[row.case], "linestyle": "", "markersize": 7}
        axis.plot(row.flops / row.bytes, reached, **style, fillstyle="full" if row.kind == OURS else "none")
    legend = [axis.plot([], [], color=colour[name], marker="s", linestyle="", label=name)[0] for name in names]
    hollow = {"color": "black", "fillstyle": "none", "linestyle": ""}
    legend += [axis.plot([], [], marker=marker[case], label=case, **hollow)[0] for case in cases]
    figure.legend(handles=legend, loc="outside right upper", fontsize=7, frameon=False)
    warning = "" if about["timings"] == "measured" else f"\n{about['timings'].upper()}"
    commit, date = about["commit"] or "unknown", about["date"][:10]
    title = f"bench_{report.name}: {about['device']}, commit {commit}, {date}{warning}"
    axis.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations per byte", ylabel="TFLOP/s", title=title)
    axis.title.set_fontsize(10)
    axis.grid(which="major", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Title": title})
    replace(report.folder / f"{report.name}.png", image.getvalue())
