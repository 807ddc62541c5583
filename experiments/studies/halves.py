"""Chunk-based pre-filling alone, bi-level loading alone, or both: what does each save, and what does each cost?

Two ways of pre-filling × three of loading, over clips of three lengths. Chunks chosen at random, and chunks chosen by the
evidence itself, bound what selection brings and what a better scorer could bring.
"""

from dataclasses import replace

from experiments.studies.contents import as_trained
from experiments.studies.open_question import AT_35, CHUNKED, DENSE, EVIDENCE_35, RANDOM_35, OpenQuestion

QUESTION = OpenQuestion(
    "halves",
    "Chunked pre-filling alone, bi-level loading alone, both",
    settings={
        "dense": DENSE,
        "chunked": CHUNKED,
        "bi-level, 62 %": replace(DENSE, share=62),
        "bi-level, 35 %": replace(DENSE, share=35),
        "both, 62 %": replace(CHUNKED, share=62),
        "both, 35 %": AT_35,
        "both, 35 %, at random": RANDOM_35,
        "both, 35 %, by evidence": EVIDENCE_35,
    },
    contents={f"{seconds} s": as_trained(seconds) for seconds in (96, 192, 384)},
    clips=6,
)
STUDY = QUESTION.study(__doc__)
