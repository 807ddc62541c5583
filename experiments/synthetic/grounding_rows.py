"""Clips as annotations of Charades-STA and QVHighlights for temporal grounding. Queries read "the dog appears"."""

import json
import math
from collections.abc import Mapping

from experiments.synthetic import clips, questions

CLIP_S = 2  # seconds of QVHighlights' grid
FILES = {
    "charades_sta": ("charades_sta_test.txt", "charades_sta_train.txt"),
    "qvhighlights": ("highlight_val_release.jsonl", "highlight_train_release.jsonl"),
}
"""The published annotation files of the test and the training split."""


def video_name(form: str, name: str, clip: clips.Clip) -> str:
    """The name of a video; QVHighlights' contain the seconds of the source video that they show."""
    return f"{name}_0.0_{clip.seconds:.1f}" if form == "qvhighlights" else name.upper()


def annotations(form: str, drawn: Mapping[str, clips.Clip]) -> str:
    """An annotation file of clips by name."""
    lines: list[str] = []
    for video, clip in drawn.items():
        lines += charades_sta(video, clip) if form == "charades_sta" else qvhighlights(video, clip, len(lines))
    return "".join(line + "\n" for line in lines)


def charades_sta(video: str, clip: clips.Clip) -> list[str]:
    """A line for each picture that appears once, because a query has one window."""
    once = [events[0] for events in questions.shows(clip).values() if len(events) == 1]
    return [f"{video} {event.start_s:.1f} {event.stop_s:.1f}##the {event.name} appears." for event in once]


def qvhighlights(video: str, clip: clips.Clip, first: int) -> list[str]:
    """A line for each picture with all its windows on the grid. `first`: number of the first query."""
    lines = []
    for number, (name, events) in enumerate(questions.shows(clip).items(), first):
        end = round(clip.seconds)  # an odd one is in the middle of the last step of the grid
        windows = [
            [CLIP_S * math.floor(e.start_s / CLIP_S), min(CLIP_S * math.ceil(e.stop_s / CLIP_S), end)] for e in events
        ]
        row = {
            "qid": number,
            "query": f"the {name} appears",
            "duration": end,
            "vid": video,
            "relevant_windows": windows,
            "relevant_clip_ids": [i for start, stop in windows for i in range(start // CLIP_S, -(-stop // CLIP_S))],
        }
        lines.append(json.dumps(row))
    return lines
