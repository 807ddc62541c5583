"""Does vxl2_jax compute what the original computes? Compare with a directory of golden tensors.

    python -m experiments.check_parity --golden DIR

DIR holds tiny_checkpoint/, vision.npz, prefill_dense.npz, prefill_chunked.npz, bilevel.npz,
prefill_flops.json and text_and_sampling.json, recorded from the original PyTorch code. Sizes, cases,
settings and special token ids are read from the files, so any directory of that form will do. The
checkpoint goes through the ordinary loader and everything through the functions that inference uses,
in float32.

One line per quantity: name, worst absolute difference, tolerance, ok or FAIL. Tolerances are 5e-5 for
features and caches and 1e-4 for logits, times the golden array's root mean square where that exceeds 1
(rounding grows with the values), and wider beyond position 839, where the original's fp32 rotary angles
are themselves off by more. With `--attention hopper`, whose units multiply 16-bit numbers, caches are bfloat16,
tolerances 800 times wider, and greedy tokens are compared up to the first step whose two best logits lie closer
than that. Masks, lengths, counts, tokens and texts must be equal. A key that no
check has looked at is a failure, too. Exit code: 0 all within, 1 some out, 2 the directory is unusable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from experiments import start
from experiments.parity import bilevel, language, tables, vision
from experiments.parity.cases import Case, Runner, read_cases
from experiments.parity.golden import Archive, GoldenError, read_json
from experiments.parity.report import Report
from pallas_kernels import attention
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.errors import RequestError, Vxl2Error

ARCHIVES = ("vision.npz", "prefill_dense.npz", "prefill_chunked.npz", "bilevel.npz")
SPECIAL = ("visual_placeholder", "time_word", "colon", "image_token_index")


SHORT = 512
"""Tokens of the longest case that an interpreted kernel is given: it runs step by step in Python."""
SIXTEEN_BITS = 800.0
"""How much wider tolerances are with bfloat16 caches: 4e-2 for features, 8e-2 for logits."""


def choose(name: str, width: int) -> tuple[attention.Kernel, jnp.dtype, str]:
    """The kernel, the dtype of caches (bfloat16 where the kernel multiplies nothing wider), and the reason."""
    for dtype in (jnp.float32, jnp.bfloat16):
        try:
            kernel, reason, _ = attention.choose_kernel(name, dtype=dtype, width=width)
            return kernel, dtype, reason
        except ValueError as error:
            refused = error
    raise RequestError(str(refused)) from refused


def compare(directory: Path, tokenizer: Path | None, stride: int | None = None, name: str = "reference") -> Report:
    """Run every comparison with the attention kernel `name`.

    Raises GoldenError or Vxl2Error for an unusable directory or kernel.
    """
    if not directory.is_dir():
        raise GoldenError(f"{directory}: no such directory")
    archives = [Archive(directory / name) for name in ARCHIVES]
    seen, dense, chunked, mixed = archives
    flops, texts = (read_json(directory / name) for name in ("prefill_flops.json", "text_and_sampling.json"))
    special = read_json(directory / "tiny_checkpoint" / "special_tokens.json")
    if lacking := [key for key in SPECIAL if key not in special]:
        raise GoldenError(f"{directory}: special_tokens.json lacks {', '.join(lacking)}")
    loaded, params = huggingface.load(directory / "tiny_checkpoint", "float32")
    config = vision.fit_grids(loaded, seen)
    report = Report()
    kernel, dtype, reason = choose(name, config.language.head_width)
    report.note(f"attention: {reason}, caches {jnp.dtype(dtype)}")
    if config != loaded:
        report.note(f"grids taken from the stored maps: {config.resized_grid} pooled by {config.pool}")
    # With fp32 weights the vision tower is fp32, which a kernel of 16-bit operands leaves to the reference.
    vision.check(report, seen, config, params, kernel if dtype == jnp.float32 else attention.REFERENCE)
    runner = Runner(config, params, stride or (16 if kernel.interpret else 4), kernel, dtype)
    cases = read_cases(dense, config, params, special)
    if kernel.interpret:
        cases = keep_short(report, cases, (dense, chunked, mixed))
    if dtype != jnp.float32:
        report.rounding = SIXTEEN_BITS
    language.check_dense(report, dense, cases, runner, special)
    language.check_chunked(report, chunked, dense, cases, runner, bilevel.prefill_rules(mixed, cases))
    bilevel.check(report, mixed, cases, runner)
    try:
        tables.check_flops(report, flops, config.frames_per_group)
        tables.check_texts(report, texts, special, tokenizer)
    except KeyError as error:
        raise GoldenError(f"{directory}: a table lacks {error}") from error
    for archive in archives:
        for key in archive.unused():
            report.fail(f"{archive.name} {key}", "not checked")
    return report


def keep_short(report: Report, cases: dict[str, Case], archives: Sequence[Archive]) -> dict[str, Case]:
    """The cases of up to SHORT tokens; notes what is left out."""
    for name, case in cases.items():
        if len(case.ids) > SHORT:
            skipped = sum(archive.skip(f"{name}_") for archive in archives)
            report.note(f"interpreted kernel: left out case {name} of {len(case.ids)} tokens ({skipped} arrays)")
    return {name: case for name, case in cases.items() if len(case.ids) <= SHORT}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("golden", None, "Directory of golden tensors.", required=True)
    flags.DEFINE_string("tokenizer", None, "tokenizer.json of Qwen2.5: compares the ids of prompts, too.")
    flags.DEFINE_enum(
        "attention",
        "reference",
        [name for name in attention.NAMES if name != "auto"],
        "Attention kernel. On a CPU, kernels run in Pallas' interpreter and only short cases are compared.",
    )
    flags.DEFINE_integer(
        "stride",
        None,
        "Groups pre-filled at a time; no result may depend on it. Default: 4, or 16 with an interpreted "
        "kernel, whose every call takes long.",
        lower_bound=1,
    )


def main(_: list[str]) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")  # or accelerators multiply in fewer bits
    # Interpreted warpgroups wait for each other on threads of XLA's pool, which has one per core: too few on two.
    os.environ.setdefault("NPROC", "16")
    try:
        tokenizer = flags.FLAGS.tokenizer and Path(flags.FLAGS.tokenizer)
        report = compare(Path(flags.FLAGS.golden), tokenizer, flags.FLAGS.stride, flags.FLAGS.attention)
    except (GoldenError, Vxl2Error) as error:
        print(f"check_parity: {error}", file=sys.stderr)
        sys.exit(2)
    print(report.summary())
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    start.run(main, define_flags)
