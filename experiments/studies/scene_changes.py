"""Do rapid scene changes hurt, and more so where they fall between the borders of groups and chunks?

Every scene has a picture and a background of its own; scenes last 16 s (a pre-fill block), 8 s, or 4 s (a group of four
frames, a bi-level chunk) and change on those borders, or two seconds past them: then a group shows two scenes. In
training pictures stayed 8 to 16 s with pauses between; scenes of 4 s are shorter than any seen.
"""

from __future__ import annotations

from experiments.studies import contents, halves
from experiments.studies.study import CHUNKED, DENSE, Setting, Study

STUDY = Study(
    name="scene_changes",
    title="Scenes of 16, 8 and 4 s that change on borders of groups, or 2 s past them (192 s)",
    settings={"dense": DENSE, "chunked": CHUNKED, "both, 35 %": Setting(share=35)},
    contents={
        f"{stay} s, {'off' if offset else 'on'} borders": contents.scenes(stay, offset)
        for stay in (16, 8, 4)
        for offset in (0.0, 2.0)
    },
    clips=7,
    draw=halves.draw,
)
