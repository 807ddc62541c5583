"""How much should be loaded dense, in chunks of what size, and how much should be pooled?

Each setting gets a share of the dense cache's bytes and takes as many chunks as fit, so that settings with the same share
cost the same: chunks of 1, 2 and 4 groups chosen by attention (with 4, the first and the last alone take 35 %), chunks at
random, and pooling by 2 to 9 (nano was trained with 4, 8 and 9). The study `relevance` compares scorers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies import contents, plots
from experiments.studies.open_question import CHUNKED, RANDOM, OpenQuestion, Setting

SHARES = (35, 48, 62)
CHUNK_SIZES = (1, 2, 4)
POOLED = {48: (3, 4, 8, 9), 62: (2, 3, 4, 8, 9)}
"""Share → compressions that leave room for a chosen chunk."""


def _by_chunk(size: int, share: int) -> str:
    return f"chunk {size}, {share} %"


def _by_pooling(compression: int, share: int) -> str:
    return _by_chunk(1, share) if compression == CHUNKED.compression else f"compression {compression}, {share} %"


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Plot accuracy over bytes, by chunk size and at random, and over compression at the same bytes."""
    marks = report["marks"]["as trained"]

    def at(x: float, name: str) -> tuple[float, plots.Point, str]:
        return x, plots.point(marks[name]), f"k {marks[name]['chosen']}"

    def by_bytes(*names: str) -> list[tuple[float, plots.Point, str]]:
        return [at(marks[name]["cache_percent"], name) for name in names]

    lines = {f"chunks of {size}, by attention": by_bytes(*(_by_chunk(size, s) for s in SHARES)) for size in CHUNK_SIZES}
    lines["chunks of 1, by attention"] += by_bytes("none chosen")
    lines["chunks of 1, at random"] = by_bytes("none chosen", *(f"at random, {share} %" for share in SHARES))
    pooled = {
        f"{share} % of the bytes": [at(by, _by_pooling(by, share)) for by in compressions]
        for share, compressions in POOLED.items()
    }
    figure, axes = plots.subplots(2, (11, 4.6), sharey=True, width_ratios=[3, 2])
    whole = plots.point(marks["whole cache"])
    plots.curves(axes[0], lines, whole, "whole cache dense", apart=0.4)
    axes[0].set(xlabel="key/value bytes loaded, percent", ylabel="correct, percent (95 %, Wilson)")
    plots.curves(axes[1], pooled, whole, "whole cache dense", apart=0.15)
    axes[1].set(xlabel="visual tokens pooled into one")
    plots.save(figure, path, report["title"])


QUESTION = OpenQuestion(
    "selection",
    "How much is loaded, in chunks of what size, and how much is pooled (clips of 192 s)",
    settings={
        "whole cache": CHUNKED,
        "none chosen": Setting(share=0),
        **{_by_chunk(size, share): Setting(share=share, chunk_size=size) for share in SHARES for size in CHUNK_SIZES},
        **{f"at random, {share} %": Setting(share=share, relevance=RANDOM) for share in SHARES},
        **{
            _by_pooling(compression, share): Setting(share=share, compression=compression)
            for share, compressions in POOLED.items()
            for compression in compressions
        },
    },
    contents={"as trained": contents.as_trained()},
    draw=draw,
)
STUDY = QUESTION.study(__doc__)
