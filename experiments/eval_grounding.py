"""Temporal grounding: when does a sentence happen in a video? R@1 at IoU .3, .5 and .7, and the mean IoU.

    python -m experiments.eval_grounding --form charades_sta --annotations charades_sta_test.txt --videos Charades_v1_480 \\
        --train charades_sta_train.txt --mode bilevel --model BAAI/Video-XL-2 --out runs/charades
    python -m experiments.eval_grounding --form qvhighlights --annotations highlight_val_release.jsonl --videos videos ...

Annotation files as they are published; videos anywhere below --videos, named after them. Two predictors: the span that
the response names, and the span of the chunks that the question looks at most (see vxl2_jax/evaluation/grounding.py).
Beside them stands what guesses get: a random span of the mean length of --train (or, without it, of the sentences of this
run), and the whole video.

nano says when something begins, and no spans. It is asked in its own words, and what it says is taken for a span of a
length that is given:

    python -m experiments.synthetic grounding --form charades_sta --clips 20 --out runs/sta
    python -m experiments.eval_grounding --form charades_sta --annotations runs/sta/charades_sta_test.txt \\
        --train runs/sta/charades_sta_train.txt --videos runs/sta/videos --template "When does {subject} first appear?" \\
        --said_s 10 --mode bilevel --out runs/sta-bilevel

--out receives run.json (settings), rows.*.jsonl (a line per video, as it is answered) and report.json, report.md,
report.png. A run that is cut off goes on with the same command, and tries again what could not be watched; missing and
broken videos are counted and stop nothing. --fraction, --said_s, --train and --seed only concern the report: the same
command with another value makes it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

import vxl2_jax as vxl2
from vxl2_jax.cli.options import progress
from vxl2_jax.evaluation import grounding, grounding_data, grounding_report, grounding_run
from vxl2_jax.evaluation.settings import MODES

_FORM = flags.DEFINE_enum("form", None, list(grounding_data.FORMATS), "Form of the annotations.", required=True)
_ANNOTATIONS = flags.DEFINE_string("annotations", None, "The annotation file.", required=True)
_VIDEOS = flags.DEFINE_string("videos", None, "Folder that holds the videos, at any depth.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of this run, made or gone on with.", required=True)
_MODE = flags.DEFINE_enum(
    "mode",
    "bilevel",
    list(MODES),
    "dense: everything; chunked: chunk-based pre-filling; bilevel: that, and only chosen chunks loaded dense.",
)
_MODEL = flags.DEFINE_string("model", "nano", "nano, a checkpoint directory, or a name on the Hugging Face hub.")
_TEMPLATE = flags.DEFINE_string(
    "template",
    grounding.TEMPLATE,
    "The question: {query} is the sentence, {subject} the sentence without its last word.",
)
_TRAIN = flags.DEFINE_string("train", None, "Annotations of the training split, for the length of a random span.")
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first so many videos.", lower_bound=1)
_FRACTION = flags.DEFINE_float(
    "fraction",
    grounding.FRACTION,
    "Attention predictor: a chunk belongs to the span if it gets so much of the best one's score.",
    lower_bound=0,
    upper_bound=1,
)
_SAID_S = flags.DEFINE_float(
    "said_s",
    None,
    "Text predictor: seconds of a span of which a response names only "
    "the start; without it such a response names none.",
    lower_bound=0,
)
_FPS = flags.DEFINE_float("fps", 1.0, "Frames watched per second.", lower_bound=0.001)
_MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Look at no more frames than this.", lower_bound=1)
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 4, "Groups per pre-fill block, except in dense mode.", lower_bound=1)
_PREV_BLOCKS = flags.DEFINE_integer("prev_blocks", 3, "Earlier blocks a block sees whole.", lower_bound=0)
_COMPRESSION = flags.DEFINE_integer(
    "compression", 4, "Visual tokens pooled into one in the sparse level.", lower_bound=1
)
_CHUNK_SIZE = flags.DEFINE_integer(
    "chunk_size", 1, "Groups (of four frames) per chunk: what spans by attention consist of.", lower_bound=1
)
_TOP_K = flags.DEFINE_integer("top_k", 4, "Chunks chosen beside the first and the last.", lower_bound=0)
_RELEVANCE = flags.DEFINE_string("relevance", "attention", "How chunks are scored; see `vxl2 ask --help`.")
_MOST_WORDS = flags.DEFINE_integer("max_new_tokens", 32, "Longest answer.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap.")
_JSON = flags.DEFINE_boolean("json", False, "Print the report as one JSON object alone on standard output.")


def wanted(items: Sequence[grounding_data.GroundingVideo], left_out: int) -> grounding_run.GroundingRun:
    """What the flags say."""
    watch = {
        "fps": _FPS.value,
        "max_frames": _MAX_FRAMES.value,
        "block_size": _BLOCK_SIZE.value,
        "prev_blocks": None if _MODE.value == "dense" else _PREV_BLOCKS.value,
        "compression": _COMPRESSION.value,
    }
    ask = {
        "relevance": _RELEVANCE.value,
        "top_k": _TOP_K.value if _MODE.value == "bilevel" else None,
        "chunk_size": _CHUNK_SIZE.value,
        "max_new_tokens": _MOST_WORDS.value,
    }
    return grounding_run.GroundingRun(_FORM.value, items, _MODE.value, _TEMPLATE.value, watch, ask, left_out)


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    asked, left_out = grounding_data.read_moments(_FORM.value, _ANNOTATIONS.value)
    items = grounding_data.group_by_video(asked, Path(_VIDEOS.value), _LIMIT.value)
    random_s, source = grounding_data.random_span_length(_FORM.value, items, _TRAIN.value)
    out = Path(_OUT.value)
    with progress("evaluating", "videos", quiet=False) as advance:
        grounding_run.evaluate(wanted(items, left_out), lambda: vxl2.load(_MODEL.value), out, progress=advance)
    spans = grounding_report.SpanOptions(_FRACTION.value, _SAID_S.value, round(random_s, 3), source, _SEED.value)
    data = grounding_report.write(out, spans)
    print(json.dumps(data, indent=1) if _JSON.value else grounding_report.as_markdown(data))
    return 0


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"eval_grounding: {error}")
