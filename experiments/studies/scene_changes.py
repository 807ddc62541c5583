"""Do rapid scene changes hurt, and more so where they do not fall on the borders of groups and chunks?

Each scene has its own picture and background. Scenes last 16 s (a pre-fill block), 8 s, or 4 s (a group of four frames,
and a chunk), and change on those borders, or two seconds later: then a group shows two scenes. In training pictures
stayed 8 to 16 s with pauses in between; scenes of 4 s are shorter than any of them.
"""

from experiments.studies.contents import scenes
from experiments.studies.open_question import AT_35, CHUNKED, DENSE, OpenQuestion

QUESTION = OpenQuestion(
    "scene_changes",
    "Scenes of 16, 8 and 4 s that change on borders of groups, or 2 s past them (192 s)",
    settings={"dense": DENSE, "chunked": CHUNKED, "both, 35 %": AT_35},
    contents={
        f"{stay} s, {where} borders": scenes(stay, offset)
        for stay in (16, 8, 4)
        for where, offset in (("on", 0.0), ("off", 2.0))
    },
    clips=7,
)
STUDY = QUESTION.study(__doc__)
