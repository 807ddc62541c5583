"""Chunk-based pre-filling alone, bi-level loading alone, both: which saves what, and which costs the accuracy?

Two ways of pre-filling × three of loading, over clips of three lengths; and both with chunks chosen by lot, and by the
evidence itself: what selection brings, and what is left for a better scorer to bring.
"""

from __future__ import annotations

from pathlib import Path

from experiments.studies import contents, drawing, tally
from experiments.studies.study import CHUNKED, DENSE, Setting, Study
from vxl2_jax.layout import PrefillRule


def draw(path: Path, report: dict) -> None:
    """A row for every kind of clips."""
    drawing.dots(path, report["title"], *tally.by_content(report["marks"]), report["compared_with"])


STUDY = Study(
    name="halves",
    title="Chunked pre-filling alone, bi-level loading alone, both",
    settings={
        "dense": DENSE,
        "chunked": CHUNKED,
        "bi-level, 62 %": Setting(PrefillRule(4, None), share=62),
        "bi-level, 35 %": Setting(PrefillRule(4, None), share=35),
        "both, 62 %": Setting(share=62),
        "both, 35 %": Setting(share=35),
        "both, 35 %, by lot": Setting(share=35, relevance="lot"),
        "both, 35 %, by evidence": Setting(share=35, relevance="evidence"),
    },
    contents={f"{seconds} s": contents.as_trained(seconds) for seconds in (96, 192, 384)},
    clips=6,
    draw=draw,
)
