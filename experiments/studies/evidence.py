"""What if the evidence is not in one place: split over two far chunks, or spread evenly over the video?

The method's predicted failures. Every clip has pictures that are shown once, twice close together or far apart, three
times close together or evenly spread; questions about two of them are about neighbours or far ones. 35 % of the bytes
leave six chunks of four seconds to choose, fewer than the chunks of three showings; "by evidence" chooses rightly, of every
event the chunk that shows it longest first.
"""

from __future__ import annotations

from pathlib import Path

from experiments.studies import contents, drawing, tally
from experiments.studies.study import CHUNKED, DENSE, Setting, Study


def draw(path: Path, report: dict) -> None:
    """A row for every way that evidence is spread, with how often all of it was dense."""
    marks = report["marks"]["returning"]

    def held(label):
        return marks["both, 35 %"]["held_by"][label]

    names = {label: f"{label}\n(held at 35 %: {held(label):.0f} %)" for label in contents.LABELS}
    drawing.dots(path, report["title"], *tally.by_label(marks, names), report["compared_with"])


STUDY = Study(
    name="evidence",
    title="Evidence in one place, in two far ones, spread evenly (clips of 192 s)",
    settings={
        "dense": DENSE,
        "chunked": CHUNKED,
        "both, 48 %": Setting(share=48),
        "both, 35 %": Setting(share=35),
        "both, 35 %, by lot": Setting(share=35, relevance="lot"),
        "both, 35 %, by evidence": Setting(share=35, relevance="evidence"),
    },
    contents={"returning": contents.returning},
    clips=24,
    draw=draw,
)
