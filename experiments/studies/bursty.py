"""Does it matter whether content is spread evenly over a video, or comes in bursts?

Twelve pictures of eight seconds: evenly spread, in three bursts, or in one. Chunks spaced evenly in time ("uniform") suit
even content; relevance to the question should not depend on how content is spread.
"""

from dataclasses import replace

from experiments.studies.contents import bursts
from experiments.studies.open_question import AT_35, CHUNKED, DENSE, RANDOM_35, OpenQuestion

QUESTION = OpenQuestion(
    "bursty",
    "Twelve pictures in 192 s: evenly spread, in three bursts, in one",
    settings={
        "dense": DENSE,
        "chunked": CHUNKED,
        "both, 35 %": AT_35,
        "both, 35 %, uniform": replace(AT_35, relevance="uniform"),
        "both, 35 %, at random": RANDOM_35,
    },
    contents={"evenly": bursts(12), "three bursts": bursts(3), "one burst": bursts(1)},
)
STUDY = QUESTION.study(__doc__)
