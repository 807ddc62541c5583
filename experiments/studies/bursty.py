"""Does it matter how content is spread over a video: evenly, or in bursts with nothing between?

Twelve pictures of eight seconds, evenly spread, in three bursts or in one. Chunks evenly spread over time ("uniform")
suit even content; what the question looks at should not depend on it.
"""

from __future__ import annotations

from experiments.studies import contents, halves
from experiments.studies.study import CHUNKED, DENSE, Setting, Study

STUDY = Study(
    name="bursty",
    title="Twelve pictures in 192 s: evenly spread, in three bursts, in one",
    settings={
        "dense": DENSE,
        "chunked": CHUNKED,
        "both, 35 %": Setting(share=35),
        "both, 35 %, uniform": Setting(share=35, relevance="uniform"),
        "both, 35 %, by lot": Setting(share=35, relevance="lot"),
    },
    contents={"evenly": contents.bursts(12), "three bursts": contents.bursts(3), "one burst": contents.bursts(1)},
    clips=8,
    draw=halves.draw,
)
