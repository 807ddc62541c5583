"""Calls that a programmer may get wrong, made without the type checks of the test run. Prints a line per call that does
not raise an error of the package in one line.

    python wrong_calls.py CHECKPOINT FOLDER
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import vxl2_jax as vxl2
from vxl2_jax.errors import Vxl2Error
from vxl2_jax.training.finetune import train
from vxl2_jax.training.settings import CheckpointSettings, LoraSettings, VideoSettings

folder = Path(sys.argv[2])
model = vxl2.load(sys.argv[1])
side = model.config.vision.image_size
frames, seconds = np.zeros((4, side, side, 3), np.uint8), np.arange(4.0)
memory = model.watch((frames, seconds))
nan, inf, huge = float("nan"), float("inf"), 10**30

NOT_A_VIDEO = (None, 3, b"a.mp4", [], (), (frames,), (None, None), (frames, None), (frames.astype(np.float32), seconds))
WRONG_FRAMES = ((frames[..., :2], seconds), (frames, seconds[:3]), (frames, [0, 1, nan, 3]), (frames, ["a"] * 4))
NUMBERS = (nan, inf, -1, huge, "4", b"4", True, [4], np.zeros(2))

CALLS: list[tuple[str, Callable]] = [
    *((f"watch({video!r:.40})", lambda video=video: model.watch(video)) for video in NOT_A_VIDEO + WRONG_FRAMES),
    *((f"watch_more({more!r:.40})", lambda more=more: model.watch_more(memory, *more)) for more in WRONG_FRAMES),
    *((f"watch_more({one!r})", lambda one=one: model.watch_more(one, frames, seconds + 9)) for one in (None, "m")),
    *((f"ask({one!r})", lambda one=one: model.ask(memory, one)) for one in (None, 3, b"?", [None], ["?", 3], "", [""])),
    *((f"stream({one!r})", lambda one=one: model.stream(memory, one)) for one in (None, 3, b"?", ["?"], "")),
    *((f"choices={one!r}", lambda one=one: model.ask(memory, "?", choices=one)) for one in ("ab", 3, [], [1], [["a"]])),
    *(
        (f"choices of two={one!r}", lambda one=one: model.ask(memory, ["?", "!"], choices=one))
        for one in ("ab", [["a"]])
    ),
    *((f"ask of {one!r}", lambda one=one: model.ask(one, "?")) for one in (None, "a.mp4", frames)),
    *((f"history={one!r}", lambda one=one: model.ask(memory, "?", history=one)) for one in (None, "?", ["?"], [None])),
    *((f"fps={one!r}", lambda one=one: model.watch((frames, seconds), fps=one)) for one in (None, 0, *NUMBERS)),
    *((f"top_k={one!r}", lambda one=one: model.ask(memory, "?", top_k=one)) for one in NUMBERS),
    *((f"seed={one!r}", lambda one=one: model.ask(memory, "?", seed=one)) for one in (None, 0.5, *NUMBERS)),
    *(
        (f"relevance={one!r}", lambda one=one: model.ask(memory, "?", relevance=one))
        for one in (None, 3, "no", "oracle:")
    ),
    *((f"text={one!r}", lambda one=one: model.ask(memory, "?", text=one)) for one in (None, 3, "no")),
    *(
        (f"relevance → {one!r}", lambda one=one: model.ask(memory, "?", relevance=lambda ids, memory: one))
        for one in (None, "x", [nan], [[1.0]], {})
    ),
    *((f"load({one!r})", lambda one=one: vxl2.load(one)) for one in (None, 3, "", "a\0b", b"nano")),
    *((f"dtype={one!r}", lambda one=one: vxl2.load("nano", one)) for one in ("float7", 3, "int8", "float64")),
    *((f"attention={one!r}", lambda one=one: vxl2.load("nano", attention=one)) for one in (None, 3, "no")),
    *((f"memory.load({one!r})", lambda one=one: vxl2.VideoMemory.load(one)) for one in (None, 3, "", "a\0b", folder)),
    *((f"memory.save({one!r})", lambda one=one: memory.save(one)) for one in (None, 3, "", "a\0b", folder)),
    *((f"compression={one!r}", lambda one=one: memory.with_compression(one)) for one in (None, 0, 0.5, nan, "4", huge)),
    *((f"out={one!r}", lambda one=one: model.watch((frames, seconds), out=one)) for one in (3, "", "a\0b", folder)),
    *((f"watch={one!r}", lambda one=one: list(model.answer_all([], watch=one))) for one in (3, {"fps": 0})),
    ("jobs=None", lambda: list(model.answer_all(None))),
    ("jobs=3", lambda: list(model.answer_all(3))),
    ("train(None)", lambda: train(None)),
    *((f"VideoSettings({one!r})", lambda one=one: VideoSettings(fps=one)) for one in (0, nan, huge)),
    ("LoraSettings(rank=0)", lambda: LoraSettings(rank=0)),
    ("CheckpointSettings(every=0)", lambda: CheckpointSettings(every=0)),
]
JOBS = (None, 3, vxl2.Job(None, "?"), vxl2.Job("a.mp4", None), vxl2.Job("a.mp4", [3]), vxl2.Job((frames, seconds), " "))


def main() -> None:
    for name, call in CALLS:
        try:
            found = call()
        except Vxl2Error as error:
            if "\n" in str(error) or len(str(error)) > 400:
                print(f"{name}: {error}")
        except Exception as error:  # the kind of error that this looks for
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            print(f"{name}: returned {found!r:.60}")
    for job, result in zip(JOBS, model.answer_all(JOBS), strict=True):
        if not isinstance(result.error, Vxl2Error):
            print(f"{job!r:.60}: {result!r:.60}")


if __name__ == "__main__":
    main()
