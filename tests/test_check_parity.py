"""The parity script, run on a reduced golden directory as it is, and after damage."""

import contextlib
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import check_parity


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """XLA optimises little: that would take most of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def run(directory, capfd) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, stderr."""
    code = 0
    with flagsaver.flagsaver():  # also removes the flags that are defined inside
        check_parity.define_flags()
        flags.FLAGS(["check_parity", f"--golden={directory}"])
        try:
            check_parity.main([])
        except SystemExit as stop:
            code = stop.code
    captured = capfd.readouterr()
    return code, captured.out.splitlines(), captured.err


@pytest.fixture
def copy(golden, tmp_path):
    return shutil.copytree(golden, tmp_path / "copy")


@contextlib.contextmanager
def edited(path):
    """The arrays of an npz file, to be changed in place."""
    with np.load(path) as file:
        arrays = dict(file)
    yield arrays
    np.savez(path, **arrays)


def test_the_golden_tensors_are_reproduced(golden, capfd):
    code, lines, _ = run(golden, capfd)
    assert code == 0, "\n".join(line for line in lines if line.endswith("FAIL"))
    assert lines[-1].startswith("parity: all") and sum(line.endswith(" ok") for line in lines) > 120


def test_every_kind_of_deviation_is_found_and_named(copy, capfd):
    with edited(copy / "vision.npz") as arrays:
        arrays["dts_talk_out"][0, 0, 0, 0, 0] += 1e-3
        arrays["preprocess_out_crop"][0, 0, 0, 0] = np.nan
    with edited(copy / "prefill_dense.npz") as arrays:
        arrays["talk_kv"][1, 0, 0, -1, 3] += 1e-3  # a row of the question
        arrays["talk_something_new"] = np.zeros(3)
    with edited(copy / "prefill_chunked.npz") as arrays:
        arrays["talk_mask_b2_p1"][40, 2] ^= 1
        arrays["talk_b3_p2_logits"] = arrays["talk_b3_p2_logits"][:-1]
    with edited(copy / "bilevel.npz") as arrays:
        arrays["talk_c3_p5_mixed_kv"][0, 1, 0, 9, 2] -= 1e-3
        arrays["talk_c2_p4_greedy_tokens"][3] += 1
        arrays["talk_all_dense_blocks"][1] = 7
    table = copy / "text_and_sampling.json"
    table.write_text(table.read_text().replace("750 seconds", "751 seconds", 1))
    code, lines, _ = run(copy, capfd)
    failed = [line.rsplit("  ", 3)[0].split("  ")[0] for line in lines if line.endswith("FAIL")]
    assert code == 1 and sorted(failed) == sorted(
        [
            "vision dts_talk_out",
            "vision preprocess_out_crop",
            "dense talk_kv",
            "prefill_dense.npz talk_something_new",
            "chunked talk_mask_b2_p1",
            "chunked talk_b3_p2_logits",
            "bilevel talk_c3_p5_mixed_kv",
            "bilevel talk_c2_p4_greedy_tokens",
            "bilevel talk_all_dense_blocks",
            "text clock times 0",
        ]
    )
    assert lines[-1].startswith("parity: 10 of")


@pytest.mark.parametrize(
    "damage",
    [
        "no directory",
        "no checkpoint",
        "no archive",
        "cut archive",
        "no ids",
        "no special tokens",
        "cut weights",
        "bad table",
    ],
)
def test_an_unusable_directory_is_one_line_and_exit_code_2(copy, capfd, damage):
    if damage == "no directory":
        shutil.rmtree(copy)
    elif damage == "no checkpoint":
        (copy / "tiny_checkpoint" / "model.safetensors").unlink()
    elif damage == "no archive":
        (copy / "bilevel.npz").unlink()
    elif damage == "cut archive":
        (copy / "vision.npz").write_bytes((copy / "vision.npz").read_bytes()[:-1000])
    elif damage == "no ids":
        for part in ("vision", "prefill_chunked", "bilevel"):
            np.savez(copy / f"{part}.npz")
        with edited(copy / "prefill_dense.npz") as arrays:
            arrays.pop("talk_ids")
    elif damage == "no special tokens":
        (copy / "tiny_checkpoint" / "special_tokens.json").write_text("{}")
    elif damage == "cut weights":
        weights = copy / "tiny_checkpoint" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        (copy / "prefill_flops.json").write_text("[1, 2]")
    code, _, error = run(copy, capfd)
    line = [text for text in error.splitlines() if text.startswith("check_parity: ")]
    assert code == 2 and len(line) == 1 and "Traceback" not in error
