"""Train nano, the shrunken Video-XL-2 inside the package, on generated clips.

The stages, in order:

    frames         clips rendered into a bank of groups of four frames
    vision         the tower names the picture under every patch
    features       what the tower makes of them
    dts            DTS and projector give every visual token its picture's direction
    visual_tokens  what those make of the groups
    language       answers about composed videos of 32 to 512 seconds (--minutes)

    for stage in frames vision features dts visual_tokens language; do
      python -m experiments.train_nano --stage=$stage
    done

The model inside the package took about three hours on two CPU cores that other work shared: vision 37 minutes (2,200
steps), features 4, dts 16 (1,200 steps), visual tokens 3, language 110 (6,326 steps, in several goes, while the
settings were still being found); frames were rendered beside other work and not timed.

A killed stage goes on from its last saved state when it is started again. `language` may start before
the stages it needs: until visual tokens are there it learns from ideal ones with noise. It writes the
whole model (Hugging Face layout, fp16) at every check, every 200 steps, and logs to log.jsonl.
"""

import pathlib

import jax
from absl import app, flags

from experiments.nano import training_run, training_stages
from experiments.synthetic import vocabulary
from vxl2_jax import config

_STAGES = ("frames", "vision", "features", "dts", "visual_tokens", "language")
_STAGE = flags.DEFINE_enum("stage", None, list(_STAGES), "which stage to run", required=True)
_FOLDER = flags.DEFINE_string("folder", "runs/nano", "where banks, states and the log are kept")
_MINUTES = flags.DEFINE_float("minutes", 110, "how long the language stage may take")
_RATE = flags.DEFINE_float("rate", 2e-4, "learning rate of the language stage")
_REAL = flags.DEFINE_float("real", 0.2, "share of videos that are clips as rendered, not composed")
_BILEVEL = flags.DEFINE_float("bilevel", 0.2, "share of steps whose questions see mixed caches")
_EXPORT = flags.DEFINE_string("export", "vxl2_jax/assets/nano", "where the model is written at every check")


def main(_: list[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(_FOLDER.value).resolve() / "compiled"))
    folder = pathlib.Path(_FOLDER.value)
    if _STAGE.value == "frames":
        training_stages.frames(folder)
    elif _STAGE.value == "language":
        size = config.nano(len(vocabulary.words()))
        target = pathlib.Path(_EXPORT.value) if _EXPORT.value else None
        training_run.language(folder, size, _MINUTES.value, _RATE.value, _REAL.value, _BILEVEL.value, target)
    else:
        getattr(training_stages, _STAGE.value)(folder, config.nano(len(vocabulary.words())))


if __name__ == "__main__":
    app.run(main)
