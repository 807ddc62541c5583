"""Settings of a training run, read from TOML.

The types of the fields, and the ranges in `options.RANGES`, are the rules that a file is checked against.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from vxl2_jax.errors import RequestError, first_line
from vxl2_jax.files import SETTINGS, check_path, read_text
from vxl2_jax.options import RANGES, WatchOptions

Module = Literal["vision", "dts", "projector", "language"]
Target = Literal["query", "key", "value", "out", "gate", "up", "down"]
Dtype = Literal["float32", "bfloat16"]
Weights = Literal["wide", "int8", "int4"]
MODULES: tuple[str, ...] = get_args(Module)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file. Raises RequestError for a number out of its range in `options.RANGES`."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                RANGES[name].check(name, value)


class DataSettings(_Table, frozen=True):
    """Where the training data is.

    Attributes:
      files: conversations, see `conversations`.
      videos: the folder that paths of videos are relative to; None: the folder of each file.
      strict: fail on an entry that cannot be used or a video that cannot be read, instead of skipping it.
      cache_gb: decoded frames kept in memory, in 10⁹ bytes.
    """

    files: Annotated[tuple[str, ...], Meta(min_length=1)]
    videos: str | None = None
    strict: bool = False
    cache_gb: float = 1.0


class VideoSettings(_Table, frozen=True):
    """How videos are sampled and pre-filled, as in `api.Model.watch`.

    Attributes:
      max_frames: None is no limit.
      prev_blocks: None is dense pre-filling.
    """

    fps: float = WatchOptions.fps
    max_frames: int | None = WatchOptions.max_frames
    max_fps: float = WatchOptions.max_fps
    block_size: int = WatchOptions.block_size
    prev_blocks: int | None = WatchOptions.prev_blocks


class Stage(_Table, frozen=True):
    """A part of the run with its own trained modules and optimiser.

    Attributes:
      train: the modules that are trained.
      learning_rate: the peak. It rises linearly from 0 over `warmup` steps, then follows a cosine.
      steps, epochs: the length; exactly one is given.
      learning_rates: peaks of modules that differ from `learning_rate`.
      final_lr_scale: the learning rate of the last step, as a fraction of the peak.
    """

    name: str
    train: Annotated[tuple[Module, ...], Meta(min_length=1)]
    learning_rate: float
    steps: int | None = None
    epochs: int | None = None
    learning_rates: Mapping[Module, float] = {}
    warmup: int = 0
    final_lr_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for module, learning_rate in self.learning_rates.items():
            RANGES["learning_rate"].check(f"learning_rates.{module}", learning_rate)
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"stage {self.name} needs either steps or epochs")
        if unused := sorted(set(self.learning_rates) - set(self.train)):
            raise ValueError(f"learning_rates names {unused[0]}, which is not trained; add it to train, or remove it")


class LoraSettings(_Table, frozen=True):
    """Low-rank updates, scaled by alpha / rank, are trained instead of the language model's linear layers."""

    rank: int = 16
    alpha: float = 32.0
    targets: Annotated[tuple[Target, ...], Meta(min_length=1)] = get_args(Target)


class CheckpointSettings(_Table, frozen=True):
    """every: steps between checkpoints; keep: the number of latest checkpoints that are kept."""

    every: int = 100
    keep: int = 2


class MeshSettings(_Table, frozen=True):
    """Devices along each axis: data (samples; None: all devices that are left) and model (heads and MLP channels)."""

    data: int | None = None
    model: int = 1


class RunSettings(_Table, frozen=True):
    """What every run has, whatever it learns from.

    Attributes:
      params_dtype: of the trained parameters and the optimiser's state.
      compute_dtype: of frozen parameters, activations and the exported model.
      max_grad_norm: gradients are clipped to this global norm.
      log_every: steps between lines of metrics.
    """

    out: str
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1)]
    seed: int = 0
    lora: LoraSettings | None = None
    params_dtype: Dtype = "float32"
    compute_dtype: Dtype = "float32"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    checkpoint: CheckpointSettings = CheckpointSettings()
    log_every: int = 10
    mesh: MeshSettings = MeshSettings()


class TrainingSettings(RunSettings, frozen=True, kw_only=True):
    """A run of `vxl2 train`: fine-tuning on conversations.

    Attributes:
      weights: how the loaded parameters are held (see `models.quantised`). Anything but wide needs low-rank updates of the
        language model alone, so that none of them is trained.
      batch: samples per step, over all devices.
      remat: recompute activations in the backward pass.
    """

    data: DataSettings
    model: str = "nano"
    weights: Weights = "wide"
    batch: int = 1
    video: VideoSettings = VideoSettings()
    remat: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights != "wide" and not self.all_frozen:
            raise ValueError(
                f'weights = "{self.weights}" needs [lora], and train = ["language"] alone in every stage: only low-rank updates are '
                "trained over such weights"
            )

    @property
    def all_frozen(self) -> bool:
        """Whether no loaded parameter is trained."""
        return self.lora is not None and all(set(stage.train) == {"language"} for stage in self.stages)


EXAMPLE = """\
model = "nano"                 # nano, a checkpoint directory, or a name on the Hugging Face hub
weights = "wide"               # or "int8", "int4": less memory for the parameters, which [lora] leaves as they are
out = "runs/first"             # checkpoints, metrics.jsonl and the trained model; relative to the working directory
seed = 0
batch = 1                      # samples per step, over all devices
params_dtype = "float32"       # of trained parameters and the optimiser
compute_dtype = "float32"      # of everything else; use "bfloat16" on GPU and TPU
remat = true                   # recompute activations in the backward pass: less memory, more time
max_grad_norm = 1.0            # gradients are clipped to this global norm
weight_decay = 0.0
log_every = 10                 # steps between lines of metrics

[data]
files = ["train.jsonl"]        # conversations; relative to this file
# videos = "videos"            # folder of the videos; default: the folder of each file
strict = false                 # true: fail on an entry or a video that cannot be used, instead of skipping it
cache_gb = 1.0                 # decoded frames kept in memory

[video]
fps = 1.0                      # frames sampled per second
max_frames = "none"            # or a number; shorter videos are then sampled more densely, up to max_fps
max_fps = 4.0
block_size = 4                 # groups of 4 frames per block of chunked pre-filling
prev_blocks = 3                # earlier blocks that a block attends to; "none": all (dense)

[lora]                         # remove this table to train the language model's own weights
rank = 16
alpha = 32.0
targets = ["query", "key", "value", "out", "gate", "up", "down"]

[[stages]]                     # one or more, run in order
name = "language"
train = ["language"]           # any of vision, dts, projector, language
learning_rate = 2e-4           # peak
epochs = 3                     # or steps
warmup = 10                    # steps from 0 to the peak, before a cosine decay
final_lr_scale = 0.0           # the cosine ends at this fraction of the peak
# learning_rates = { projector = 1e-4 } # modules with a different peak

[checkpoint]
every = 100                    # steps
keep = 2                       # latest checkpoints

[mesh]                         # devices along each axis
data = "all"                   # samples
model = 1                      # heads and MLP channels
"""
"""A settings file with every option. Options that a file omits have the values shown here, but for lora and stages."""

# TOML has no null.
_NONE = {path: RANGES[path.partition(".")[2]].none for path in ("video.max_frames", "video.prev_blocks", "mesh.data")}
_RENAMED = {
    "rate": "learning_rate",
    "rates": "learning_rates",
    "end": "final_lr_scale",
    "clip": "max_grad_norm",
}
_CHOICES = {
    "train": Module,
    "learning_rates": Module,
    "targets": Target,
    "params_dtype": Dtype,
    "compute_dtype": Dtype,
    "weights": Weights,
}
TABLES = {
    "": TrainingSettings,
    "data": DataSettings,
    "video": VideoSettings,
    "stages": Stage,
    "lora": LoraSettings,
    "checkpoint": CheckpointSettings,
    "mesh": MeshSettings,
}


def read(path: str | Path) -> TrainingSettings:
    """Read settings from a TOML file. Paths in [data] become relative to the file's folder.

    Raises:
      RequestError: in one line, the file, the option and what is allowed there.
    """
    path = Path(path)
    text = read_text(path, SETTINGS)
    try:
        settings = parse(text)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error

    def resolve(name: str) -> str:
        return str(path.parent / check_path(name, "a path in [data]"))

    data = settings.data
    data = msgspec.structs.replace(
        data, files=tuple(map(resolve, data.files)), videos=None if data.videos is None else resolve(data.videos)
    )
    return msgspec.structs.replace(settings, out=str(check_path(settings.out, "out")), data=data)


def parse(text: str) -> TrainingSettings:
    """Read settings from TOML text, with paths as written. Raises RequestError as `read`, without the file's name."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of more than 4,300 digits
        raise RequestError(f"not valid TOML: {first_line(error)}") from error
    try:
        for path, word in _NONE.items():
            table, option = path.split(".")
            if isinstance(options := tables.get(table), dict) and options.get(option) == word:
                options[option] = None
        return msgspec.convert(tables, TrainingSettings)
    except ValueError as error:  # of msgspec, or of a key that is no Unicode text
        raise RequestError(_explain(str(error))) from error


def _explain(error: str) -> str:
    """msgspec's message in the terms of TOML, with the option first and the possible choices last."""
    message, _, where = error.partition(" - at ")
    path = re.sub(r"`key` in |[`$]", "", where).removeprefix(".").removesuffix("[...]")
    name = re.sub(r"\[\d+\]", "", path).rpartition(".")[2]
    if unknown := re.search(r"unknown field `(.*)`", message):
        key, place = unknown[1], f" in {path}" if path else ""
        if key in _RENAMED:
            return f"unknown option {key!r}{place}; it is now called {_RENAMED[key]}"
        return f"unknown option {key!r:.60}{place}; the options are {', '.join(TABLES[name].__struct_fields__)}"
    if missing := re.search(r"missing required field `(.*)`", message):
        key = f"{path}.{missing[1]}" if path else missing[1]
        return f"{key} is missing; `vxl2 train --print-config` shows where it belongs"
    if message.startswith("Invalid enum value"):
        message += f"; choose from {', '.join(get_args(_CHOICES[name]))}"
    if path in _NONE:
        message = message.replace("null", f'"{_NONE[path]}"')
    message = message.replace("`object`", "a table").replace("`array`", "a list").replace(" enum", "").replace("`", "")
    return f"{path}: " * bool(path) + f"{message[0].lower()}{message[1:]}"
