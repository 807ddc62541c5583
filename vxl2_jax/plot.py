"""The picture of an answer: frames of the video, relevance over time, dense chunks marked; and how pictures are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vxl2_jax.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vxl2_jax.generate import Answer

FORMATS = (".png", ".pdf", ".svg", ".jpg")


def check_path(path: Path) -> None:
    """Raise RequestError, before any long work, for a place that cannot take a plot."""
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"{path}: a plot is one of {', '.join(FORMATS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"{path}: no folder to write the plot into; make it first")


def draw(path: Path, answers: Sequence[Answer], frames: np.ndarray, seconds: np.ndarray, title: str) -> None:
    """Write the picture, whole or not at all.

    Shapes: frames uint8 [n, S, S, 3] shown as thumbnails at their `seconds` [n]; none for a memory without its video.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 11.0
    figure = Figure(figsize=(width, 1.5 + 1.6 * len(answers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1 + len(answers),
        1,
        sharex=True,
        height_ratios=[1.0 if len(frames) else 0.1] + [1.3] * len(answers),
        squeeze=False,
    )[:, 0]
    end = max(chunk.end_s for chunk in answers[0].chunks) or 1.0
    strip = axes[0]
    slot = end / max(len(frames), 1)
    for i, frame in enumerate(frames):
        strip.imshow(frame, extent=(i * slot, (i + 1) * slot, 0, 1), aspect="auto", interpolation="antialiased")
        strip.annotate(
            f"{seconds[i]:g} s",
            ((i + 0.03) * slot, 0.05),
            color="white",
            fontsize=7,
            bbox={"boxstyle": "square,pad=0.15", "color": "black", "alpha": 0.55, "linewidth": 0},
        )
    strip.set(xlim=(0, end), ylim=(0, 1), yticks=[], title=title)
    for axis, answer in zip(axes[1:], answers, strict=True):
        starts, ends, scores = (
            np.array([getattr(c, name) for c in answer.chunks]) for name in ("start_s", "end_s", "score")
        )
        colours = np.where([c.dense for c in answer.chunks], "#1f77b4", "#c7d5e2")
        axis.bar(
            starts, scores, width=np.maximum(ends - starts, end * 1e-3), align="edge", color=colours, edgecolor="white"
        )
        axis.set(ylabel="relevance", ylim=(0, max(scores.max(), 1e-9) * 1.15))
        axis.set_title(
            f"{answer.question}  →  {answer.text}   ({100 * answer.cache_ratio:.0f} % of the cache loaded)",
            fontsize=10,
            loc="left",
            parse_math=False,
        )
        axis.spines[["top", "right"]].set_visible(False)
    handles = [
        axes[1].bar([0], [0], color=colour, label=label)
        for colour, label in (("#1f77b4", "dense"), ("#c7d5e2", "sparse"))
    ]
    figure.legend(handles=handles, loc="upper right", fontsize=8, frameon=False, ncols=2)
    axes[-1].set_xlabel("seconds")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all. Raises RequestError where it cannot be written."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(partial, dpi=110)
        os.replace(partial, path)
    except OSError as error:
        raise RequestError(f"{path}: cannot write the picture ({error.strerror}); choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
