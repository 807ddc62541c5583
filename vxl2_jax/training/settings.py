"""What a training run is to do: TOML in, frozen dataclasses out.

Every key of the file is a field here and every table a dataclass, so that a mistake is told by the names that exist.
Importing this takes no JAX.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vxl2_jax.errors import RequestError

Module = Literal["vision", "dts", "projector", "language"]
Target = Literal["query", "key", "value", "out", "gate", "up", "down"]
Dtype = Literal["float32", "bfloat16"]
MODULES: tuple[str, ...] = get_args(Module)


@dataclass(frozen=True)
class Data:
    """files: conversations, see `conversations`; videos: the folder that their paths count from, None: each file's own;
    strict: a video that cannot be read ends the run; cache_gb: decoded frames kept in memory, in 10⁹ bytes."""

    files: tuple[str, ...]
    videos: str | None = None
    strict: bool = False
    cache_gb: float = 1.0


@dataclass(frozen=True)
class Video:
    """How videos are watched, as in `api.Model.watch`; max_frames None sets no limit, prev_blocks None is dense."""

    fps: float = 1.0
    max_frames: int | None = None
    max_fps: float = 4.0
    block_size: int = 4
    prev_blocks: int | None = 3


@dataclass(frozen=True)
class Stage:
    """A part of the run, with an optimiser of its own.

    train: the modules that learn; their learning rate rises linearly from 0 over `warmup` steps to `rate` (to that of
    `rates` for the modules named there), then falls by a cosine to `end` times that at the last step. Of steps and
    epochs one is given.
    """

    name: str
    train: tuple[Module, ...]
    rate: float
    steps: int | None = None
    epochs: int | None = None
    rates: Mapping[Module, float] = field(default_factory=dict, hash=False)
    warmup: int = 0
    end: float = 0.0


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the language half's linear layers learn in their place; they are scaled by alpha / rank."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Checkpoint:
    """every: steps between checkpoints; keep: how many stay."""

    every: int = 100
    keep: int = 2


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis: data (examples; None: all that are left) and model (heads, MLP)."""

    data: int | None = None
    model: int = 1


@dataclass(frozen=True)
class TrainingSettings:
    """A whole run. `batch`: examples of a step, over all devices; clip: greatest norm of a gradient.

    params_dtype: of the parameters that learn and of the optimiser's state; compute_dtype: of those that do not, of
    activations, and of the model that is written at the end. remat: make activations again in the backward pass.
    """

    out: str
    data: Data
    stages: tuple[Stage, ...]
    model: str = "nano"
    seed: int = 0
    batch: int = 1
    video: Video = field(default_factory=Video)
    lora: Lora | None = None
    params_dtype: Dtype = "float32"
    compute_dtype: Dtype = "float32"
    remat: bool = True
    clip: float = 1.0
    weight_decay: float = 0.0
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log_every: int = 10
    mesh: Mesh = field(default_factory=Mesh)

    @property
    def block_size(self) -> int:
        """Groups in a block of chunk-based pre-filling."""
        return self.video.block_size

    @property
    def prev_blocks(self) -> int | None:
        """Earlier blocks that a block sees whole; None is dense."""
        return self.video.prev_blocks


EXAMPLE = """\
model = "nano"                 # nano, a checkpoint directory, or a name on the Hugging Face hub
out = "runs/first"             # checkpoints, metrics.jsonl and, at the end, the model; relative to where you start
seed = 0
batch = 1                      # examples a step, over all devices
params_dtype = "float32"       # of the parameters that learn, and of the optimiser
compute_dtype = "float32"      # of all else; "bfloat16" on GPU and TPU
remat = true                   # make activations again in the backward pass: less memory, more time
clip = 1.0                     # greatest norm of a gradient
weight_decay = 0.0
log_every = 10                 # steps between lines of metrics

[data]
files = ["train.jsonl"]        # conversations; relative to this file
# videos = "videos"            # the folder that their paths count from; else each file's own
strict = false                 # true: a video that cannot be read ends the run, instead of being left out
cache_gb = 1.0                 # decoded frames kept in memory

[video]
fps = 1.0                      # frames looked at per second
max_frames = "none"            # or a number; short videos are then looked at more densely, up to max_fps
max_fps = 4.0
block_size = 4                 # groups of 4 frames in a block of chunk-based pre-filling
prev_blocks = 3                # earlier blocks a block sees whole; "none": dense

[lora]                         # without this table the language half itself learns
rank = 16
alpha = 32.0
targets = ["query", "key", "value", "out", "gate", "up", "down"]

[[stages]]                     # as many as you like, one after the other
name = "language"
train = ["language"]           # of vision, dts, projector, language
rate = 2e-4                    # learning rate
epochs = 3                     # or steps
warmup = 10                    # steps from 0 to the rate; then a cosine falls to end × rate
end = 0.0
# rates = { projector = 1e-4 } # modules with another rate

[checkpoint]
every = 100                    # steps
keep = 2

[mesh]                         # devices along each axis
data = "all"                   # examples
model = 1                      # heads and MLP
"""
"""A configuration with everything that there is to set; what it leaves at their defaults has them written out."""

_WORDS_FOR_NONE = {"max_frames": "none", "prev_blocks": "none", "data": "all"}


def read(path: str | Path) -> TrainingSettings:
    """Settings from a TOML file; data's paths are made to count from the file's folder.

    Raises RequestError with one line that names the file, the key and what is allowed there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        mend = "`vxl2 train --print-config` gives one"
        raise RequestError(f"{path}: cannot read the configuration ({error}); {mend}") from error
    try:
        settings = parse(text)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    data, from_here = settings.data, lambda name: str(path.parent / Path(name).expanduser())
    return dataclasses.replace(
        settings,
        out=str(Path(settings.out).expanduser()),
        data=dataclasses.replace(
            data,
            files=tuple(map(from_here, data.files)),
            videos=None if data.videos is None else from_here(data.videos),
        ),
    )


def parse(text: str) -> TrainingSettings:
    """Settings from TOML, with paths as they are written. Raises RequestError as `read`, without the file's name."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"not TOML: {error}") from error
    settings = _dataclass(TrainingSettings, table, "")
    _check(settings)
    return settings


def _dataclass(kind: type, table: Any, at: str) -> Any:
    if not isinstance(table, dict):
        raise RequestError(f"{at} must be a table, not {table!r}")
    hints, fields = get_type_hints(kind), {one.name: one for one in dataclasses.fields(kind)}

    def named(key):
        return f"{at}.{key}" if at else key

    for key in table:
        if key not in fields:
            where = f"in {at}" if at else "at the top"
            raise RequestError(f"unknown key {key!r} {where}; there is {', '.join(fields)}")
    for key, one in fields.items():
        needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if needed and key not in table:
            raise RequestError(f"{named(key)} is missing; `vxl2 train --print-config` shows where it stands")
    return kind(**{key: _value(hints[key], value, named(key)) for key, value in table.items()})


def _value(kind: Any, value: Any, at: str, else_: str = "") -> Any:
    """`value` as TOML has it, as the type `kind`; else_: what is allowed beside that, for the error."""
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, at)
    if origin in (Union, types.UnionType):  # T | None
        word = _WORDS_FOR_NONE.get(at.rsplit(".", 1)[-1])
        return None if word and value == word else _value(parts[0], value, at, f', or "{word}"' if word else "")
    if origin is tuple:
        if not isinstance(value, list):
            raise RequestError(f"{at} must be a list, not {value!r}")
        return tuple(_value(parts[0], one, f"{at}[{number}]") for number, one in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise RequestError(f"{at} must be a table, not {value!r}")

        def named(key):
            return _value(parts[0], key, f"a key of {at}")

        return {named(key): _value(parts[1], one, f"{at}.{key}") for key, one in value.items()}
    if origin is Literal:
        if value not in parts:
            raise RequestError(f"{at} must be one of {', '.join(parts)}, not {value!r}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or value in (math.inf, -math.inf):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise RequestError(f"{at} must be {names[kind]}{else_}, not {value!r}")
    return value


def _check(settings: TrainingSettings) -> None:
    """Raise RequestError for values that no run could use."""
    data, video, mesh, lora = settings.data, settings.video, settings.mesh, settings.lora
    checkpoint = settings.checkpoint
    least = {
        "batch": (settings.batch, 1),
        "log_every": (settings.log_every, 1),
        "checkpoint.every": (checkpoint.every, 1),
        "checkpoint.keep": (checkpoint.keep, 1),
        "data.cache_gb": (data.cache_gb, 0),
        "weight_decay": (settings.weight_decay, 0),
        "seed": (settings.seed, 0),
        "video.block_size": (video.block_size, 1),
        "video.prev_blocks": (video.prev_blocks, 0),
        "mesh.data": (mesh.data, 1),
        "mesh.model": (mesh.model, 1),
        "video.max_frames": (video.max_frames, 1),
        "lora.rank": (lora and lora.rank, 1),
    }
    above = {"clip": settings.clip, "video.fps": video.fps, "video.max_fps": video.max_fps}
    above["lora.alpha"] = lora and lora.alpha
    filled: dict[str, Any] = {"data.files": data.files, "stages": settings.stages}
    filled["lora.targets"] = not lora or lora.targets
    for number, stage in enumerate(settings.stages):
        at = f"stages[{number}]"
        if (stage.steps is None) == (stage.epochs is None):
            raise RequestError(f"{at} ({stage.name}) needs steps or epochs, one of them")
        least |= {f"{at}.steps": (stage.steps, 1), f"{at}.epochs": (stage.epochs, 1)}
        least |= {f"{at}.warmup": (stage.warmup, 0), f"{at}.end": (stage.end, 0)}
        above |= {f"{at}.rate": stage.rate} | {f"{at}.rates.{key}": rate for key, rate in stage.rates.items()}
        filled[f"{at}.train"] = stage.train
        if idle := sorted(set(stage.rates) - set(stage.train)):
            raise RequestError(
                f"{at}.rates names {idle[0]}, which does not learn there; add it to train, or leave it out"
            )
    for key, value in filled.items():
        if not value:
            raise RequestError(f"{key} is empty; name at least one")
    for key, (value, bound) in least.items():
        if value is not None and not value >= bound:
            raise RequestError(f"{key} must be at least {bound}, not {value}")
    for key, value in above.items():
        if value is not None and not value > 0:
            raise RequestError(f"{key} must be above 0, not {value}")
