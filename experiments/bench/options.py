"""Flags that all benchmarks have. A flag left out takes a value that suits the machine."""

from __future__ import annotations

from typing import TypeVar

from absl import flags

from pallas_kernels.attention.tile_sizes import TileSizes

OUT = flags.DEFINE_string("out", "runs/bench", "Folder for the results: JSON, a Markdown table, a roofline plot.")
LIMIT_S = flags.DEFINE_float(
    "limit_s", 3000.0, "Seconds after which nothing new is begun. Results are written after every row.", lower_bound=0
)
FRAMES = flags.DEFINE_list("frames", None, "Lengths of videos, in frames.")
BACKENDS = flags.DEFINE_list(
    "backends", None, "Attention kernels: tpu, hopper, ampere, reference. Default: those written for the machine."
)
BASELINES = flags.DEFINE_list(
    "baselines", None, "What to compare with; the script's help says which there are. Default: all. `none`: nothing."
)
TILES = flags.DEFINE_string(
    "tiles", None, 'Tile sizes to try, not the tuned ones: "rows,keys,stages,warps;…" (the last two may be left out).'
)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Dtype of inputs and caches.")
SAMPLES = flags.DEFINE_integer("samples", None, "Times a figure is taken; the median counts.", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", None, "Query heads.", lower_bound=1)
KV_HEADS = flags.DEFINE_integer("kv_heads", None, "Key heads of the language model.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", None, "Head width.", lower_bound=1)
VISUAL = flags.DEFINE_integer("visual", 144, "Visual tokens per group of four frames.", lower_bound=1)
TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "An interpreter that has torch, for its baselines. Default: the one that runs this."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of all random inputs.")

T = TypeVar("T")


def given(flag: flags.FlagHolder[T | None], otherwise: T) -> T:
    """The flag's value, or `otherwise` where it was left out."""
    return otherwise if flag.value is None else flag.value


def integers(flag: flags.FlagHolder[list[str] | None], otherwise: list[int]) -> list[int]:
    """The numbers of a list flag. Raises UsageError for what is no positive number."""
    try:
        numbers = [int(item) for item in given(flag, otherwise)]
    except ValueError as error:
        raise UsageError(f"--{flag.name}: {error}") from error
    if not numbers or min(numbers) < 1:
        raise UsageError(f"--{flag.name} takes numbers of at least 1, separated by commas")
    return numbers


def names(flag: flags.FlagHolder[list[str] | None], known: list[str], otherwise: list[str]) -> list[str]:
    """The names of a list flag; `none` is an empty list. Raises UsageError for an unknown one."""
    chosen = [] if flag.value == ["none"] else given(flag, otherwise)
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"--{flag.name}: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    return list(chosen)


def tile_candidates() -> list[TileSizes | None]:
    """What --tiles lists; [None], the tuned ones, without it. Raises UsageError for what cannot be read."""
    if not TILES.value:
        return [None]
    try:
        return [TileSizes(*(int(n) for n in part.split(","))) for part in TILES.value.split(";") if part.strip()]
    except (TypeError, ValueError) as error:
        raise UsageError(f'--tiles takes "rows,keys,stages,warps;…", not {TILES.value!r}') from error


class UsageError(Exception):
    """A flag that makes no sense, in one line."""
