"""What if the evidence is not in one place, but in two distant chunks, or spread evenly over the video?

The method's predicted failures. Every clip has pictures that are shown once, twice close together or far apart, and three
times close together or evenly spread; questions about two pictures are about neighbours or distant ones. 35 % of the
bytes leave six chunks of four seconds to choose, fewer than the chunks of three appearances; "by evidence" chooses
perfectly, first the chunk that shows each event longest.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.studies import contents
from experiments.studies.open_question import AT_35, CHUNKED, DENSE, EVIDENCE_35, RANDOM_35, OpenQuestion, by_label


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Plot a row for every way that evidence is spread, with how often all of it was dense."""
    held = report["marks"]["returning"]["both, 35 %"]["held_by"]
    names = {label: f"{label}\n(held at 35 %: {held[label]:.0f} %)" for label in contents.LABELS}
    by_label(path, report, "returning", names)


QUESTION = OpenQuestion(
    "evidence",
    "Evidence in one place, in two far ones, spread evenly (clips of 192 s)",
    settings={
        "dense": DENSE,
        "chunked": CHUNKED,
        "both, 48 %": replace(AT_35, share=48),
        "both, 35 %": AT_35,
        "both, 35 %, at random": RANDOM_35,
        "both, 35 %, by evidence": EVIDENCE_35,
    },
    contents={"returning": contents.returning},
    clips=24,
    draw=draw,
)
STUDY = QUESTION.study(__doc__)
