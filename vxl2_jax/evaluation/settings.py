"""The settings of the original's published runs, and their accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.text.prompt import ORIGINAL

FPS, MAX_FPS = 1.0, 4.0
"""Frames per second, and the maximum for short videos. Decoding is greedy, as by default."""
MAX_NEW_TOKENS = {"mlvu": 16, "video_mme": 16, "longvideobench": 32, "lvbench": 16}


@dataclass(frozen=True)
class PublishedSetting:
    """The settings of a published run; block_size and prev_blocks are None for plain dense pre-filling.

    accuracy: the published one, in percent.
    """

    max_frames: int
    block_size: int | None
    prev_blocks: int | None
    accuracy: float


RELEASED: dict[str, dict[str, PublishedSetting]] = {
    "mlvu": {  # dev
        "pure": PublishedSetting(256, None, None, 73.87),
        "chunked": PublishedSetting(256, 4, 3, 73.28),
        "chunked_bilevel": PublishedSetting(256, 4, 3, 74.79),
    },
    "video_mme": {  # without subtitles
        "pure": PublishedSetting(400, None, None, 66.37),
        "chunked": PublishedSetting(300, 4, 3, 66.04),
        "chunked_bilevel": PublishedSetting(400, 4, 3, 66.63),
    },
    "longvideobench": {  # val
        "pure": PublishedSetting(400, None, None, 60.21),
        "chunked": PublishedSetting(400, 6, 5, 59.69),
        "chunked_bilevel": PublishedSetting(400, 4, 3, 60.96),
    },
    "lvbench": {  # the chunked run used an older checkpoint
        "pure": PublishedSetting(600, None, None, 47.64),
        "chunked": PublishedSetting(600, 4, 11, 46.61),
        "chunked_bilevel": PublishedSetting(600, 4, 11, 48.61),
    },
}
"""By benchmark and mode. The bi-level runs used top-k and chunk size per question category, from the original's oracle
files (see `relevance.oracle`), apparently chosen on the test set."""

MODES = {"dense": "pure", "chunked": "chunked", "bilevel": "chunked_bilevel"}
"""Our names of the modes → those in `RELEASED`."""
COMPRESSION = 4
"""Visual tokens pooled into one in all released bi-level runs."""


def watch_settings(watch: Mapping[str, Any]) -> dict[str, Any]:
    """Options of watching that may change results: those given, and the defaults of all others.

    The number of threads and the place of the dense level change nothing, and may differ where a run is resumed.
    """
    same = ("read_threads", "dense_level")
    return {name: value for name, value in {**asdict(WatchOptions()), **watch}.items() if name not in same}


def released(name: str, mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The released options of `Model.watch` and `Model.ask` for a benchmark and a mode (of `MODES`).

    In mode "bilevel", top-k, chunk size and the choice of chunks by attention are ours (the defaults of `Model.ask`); when
    oracle files are replayed (`replay`) all three come from them. The other modes load everything dense: their scorer is
    one that costs nothing.
    """
    setting = RELEASED[name][MODES[mode]]
    watch = WatchOptions(
        fps=FPS,
        max_frames=setting.max_frames,
        max_fps=MAX_FPS,
        block_size=setting.block_size or WatchOptions.block_size,
        prev_blocks=setting.prev_blocks,
        compression=COMPRESSION,
    )
    chosen: dict[str, Any] = {} if mode == "bilevel" else {"relevance": "recent", "top_k": None}
    return asdict(watch), asdict(AskOptions(max_new_tokens=MAX_NEW_TOKENS[name], text=ORIGINAL, **chosen))
