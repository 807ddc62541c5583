"""Plots: figures, how they are written, and the plot of answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vxl2_jax.answer import Answer
from vxl2_jax.errors import RequestError
from vxl2_jax.files import check_output
from vxl2_jax.text.typed import printable

FORMATS = (".png", ".pdf", ".svg", ".jpg")
MAX_ANSWERS = 40
"""Answers in one plot; a picture of more would be too high for the formats."""
_DENSE, _SPARSE = "#1f77b4", "#c7d5e2"


def check_path(path: Path, video: str | None = None) -> None:
    """Raise RequestError if a plot cannot be written to `path`; to be called before any long work.

    video: as in `files.check_output`.
    """
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"{path}: a plot must be one of {', '.join(FORMATS)}")
    check_output(path, video)


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure; width and height in inches."""
    from matplotlib.figure import Figure  # slow to import, and most calls draw nothing

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib Figure atomically. Raises RequestError if it cannot be written."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(partial, dpi=110)
        os.replace(partial, path)
    except OSError as error:
        raise RequestError(f"{path}: cannot write the plot ({error.strerror}); choose another place") from error
    finally:
        partial.unlink(missing_ok=True)


def draw(
    path: Path,
    answers: Sequence[Answer],
    frames: UInt8[np.ndarray, "F H W 3"] | Sequence[UInt8[np.ndarray, "H W 3"]],
    seconds: Float[np.ndarray, " F"] | Sequence[float],
    title: str,
) -> None:
    """Plot answers over the time of the video: thumbnails, relevance scores, and which chunks were loaded dense.

    Args:
      path: the file to write, atomically.
      answers: about one video.
      frames: thumbnails; none for a memory without its video.
      seconds: the times of the thumbnails.
      title: of the plot.

    Of more than `MAX_ANSWERS` answers, the first ones are plotted, and the title gives the number of the others.

    Raises RequestError if the plot cannot be written.
    """
    if left_out := len(answers[MAX_ANSWERS:]):
        answers, title = answers[:MAX_ANSWERS], f"{title} (without {left_out} more answers)"
    figure = new_figure(11.0, 1.5 + 1.6 * len(answers))
    axes = figure.subplots(
        1 + len(answers),
        1,
        sharex=True,
        height_ratios=[1.0 if len(frames) else 0.1] + [1.3] * len(answers),
        squeeze=False,
    )[:, 0]
    end = max(chunk.end_s for chunk in answers[0].chunks) or 1.0
    width = end / max(len(frames), 1)
    for i, frame in enumerate(frames):
        axes[0].imshow(frame, extent=(i * width, (i + 1) * width, 0, 1), aspect="auto", interpolation="antialiased")
        axes[0].annotate(
            f"{seconds[i]:g} s",
            ((i + 0.03) * width, 0.05),
            color="white",
            fontsize=7,
            bbox={"boxstyle": "square,pad=0.15", "color": "black", "alpha": 0.55, "linewidth": 0},
        )
    axes[0].set(xlim=(0, end), ylim=(0, 1), yticks=[])
    axes[0].set_title(printable(title), parse_math=False)
    for axis, answer in zip(axes[1:], answers, strict=True):
        starts, ends, scores = (
            np.array([getattr(chunk, name) for chunk in answer.chunks]) for name in ("start_s", "end_s", "score")
        )
        colours = np.where([chunk.dense for chunk in answer.chunks], _DENSE, _SPARSE)
        axis.bar(
            starts, scores, width=np.maximum(ends - starts, end * 1e-3), align="edge", color=colours, edgecolor="white"
        )
        axis.set(ylabel="relevance", ylim=(0, max(scores.max(), 1e-9) * 1.15))
        axis.set_title(
            printable(
                f"{answer.question:.200}  →  {answer.text:.200}   ({100 * answer.cache_ratio:.0f} % of the cache loaded)"
            ),
            fontsize=10,
            loc="left",
            parse_math=False,
        )
        axis.spines[["top", "right"]].set_visible(False)
    handles = [
        axes[1].bar([0], [0], color=colour, label=label) for colour, label in ((_DENSE, "dense"), (_SPARSE, "sparse"))
    ]
    figure.legend(handles=handles, loc="upper right", fontsize=8, frameon=False, ncols=2)
    axes[-1].set_xlabel("seconds")
    save(figure, path)
