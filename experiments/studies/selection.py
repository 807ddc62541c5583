"""How much should be loaded dense, in chunks of what size, and how much pooled?

Every choice gets so many percent of the dense memory's bytes and takes as many chunks as fit, so that settings in one
column cost the same: chunks of 1, 2 and 4 groups chosen by attention (of 4, first and last alone take 35 %), chunks by
lot, and pooling by 2 to 9 (of which nano saw 4, 8 and 9 in training). Scorers are compared by `compare_relevance.py`.
"""

from __future__ import annotations

from pathlib import Path

from experiments.studies import contents, drawing, tally
from experiments.studies.study import CHUNKED, Setting, Study
from vxl2_jax import plot

SHARES = (35, 48, 62)
CHUNK_SIZES = (1, 2, 4)
POOLED = {48: (3, 4, 8, 9), 62: (2, 3, 4, 8, 9)}
"""Share → compressions that leave room for a chosen chunk."""


def _by_chunk(size: int, share: int) -> str:
    return f"chunk {size}, {share} %"


def _by_pooling(compression: int, share: int) -> str:
    return _by_chunk(1, share) if compression == CHUNKED.compression else f"compression {compression}, {share} %"


def draw(path: Path, report: dict) -> None:
    """Accuracy over bytes, by chunk size and by lot; and over compression at the same bytes."""
    marks = report["marks"]["as trained"]

    def bytes_of(name):
        return (marks[name]["cache_percent"], tally.point(marks[name]), f"k {marks[name]['chosen']}")

    lines = {
        f"chunks of {size}, by attention": [bytes_of(_by_chunk(size, share)) for share in SHARES]
        for size in CHUNK_SIZES
    }
    lines["chunks of 1, by attention"].append(bytes_of("none chosen"))
    lines["chunks of 1, by lot"] = [bytes_of("none chosen"), *(bytes_of(f"by lot, {share} %") for share in SHARES)]
    figure, axes = drawing.new_figure(1, 2, (11, 4.6), sharey=True, width_ratios=[3, 2])
    whole = tally.point(marks["whole cache"])
    drawing.curves(axes[0], lines, whole, "whole cache dense", apart=0.4)
    axes[0].set(xlabel="key/value bytes loaded, percent", ylabel="right, percent (95 %, Wilson)")
    pooled = {
        f"{share} % of the bytes": [
            (compression, tally.point(mark), f"k {mark['chosen']}")
            for compression in compressions
            for mark in [marks[_by_pooling(compression, share)]]
        ]
        for share, compressions in POOLED.items()
    }
    drawing.curves(axes[1], pooled, whole, "whole cache dense", apart=0.15)
    axes[1].set(xlabel="visual tokens pooled into one")
    figure.suptitle(report["title"], fontsize=11)
    plot.save(figure, path)


STUDY = Study(
    name="selection",
    title="How much is loaded, in chunks of what size, and how much is pooled (clips of 192 s)",
    settings={
        "whole cache": CHUNKED,
        "none chosen": Setting(share=0),
        **{_by_chunk(size, share): Setting(share=share, chunk_size=size) for share in SHARES for size in CHUNK_SIZES},
        **{f"by lot, {share} %": Setting(share=share, relevance="lot") for share in SHARES},
        **{
            _by_pooling(compression, share): Setting(share=share, compression=compression)
            for share, compressions in POOLED.items()
            for compression in compressions
        },
    },
    contents={"as trained": contents.as_trained()},
    clips=8,
    draw=draw,
)
