"""The benchmark of watching: medians, ratios, worker processes that fail, and a tiny run from end to end."""

import importlib.util
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from experiments.bench import jax_worker, workers
from experiments.bench.__main__ import main
from experiments.bench.cases import comparison, watching
from experiments.bench.cases.comparison import OURS, TORCH
from experiments.bench.measure import Ceilings
from experiments.bench.report import Row
from vxl2_jax import planning
from vxl2_jax.layout import PrefillRule

MACHINE = dict.fromkeys(("device", "jax", "python", "commit"), "made up") | {"cores": 2, "load": 0.5}
MACHINE |= {"date": "2000-01-01", "timings": "measured"}
CEILINGS = Ceilings(flops=1e12, bytes=1e11, product="a product", copy="a copy")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """What workers run on."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def replies(seconds: float) -> list[dict]:
    """Of a length whose warm runs take `seconds` (one of them much longer), and the first ten seconds more."""

    def one(s, peak):
        timings = {"read": 0.0, "vision": s / 2, "prefill": s * 3 / 8}
        memory = {"before_bytes": 1000, "peak_bytes": peak, "cache_bytes": 300}
        return {"run": {"timings": timings, "sparse_s": s / 8, "total_s": s, **memory}}

    flops = {"vision": 60, "dts": 20, "projector": 20, "language_linear": 40, "attention": 10}
    runs = [one(seconds + 10, 9000), one(seconds, 1500), one(5 * seconds, 1400), one(seconds, 1300)]
    return [runs[0], {"tokens": 400, "flops": flops, "planned_bytes": 1}, *runs[1:]]


def test_medians_leave_the_first_run_out():
    rows = {row.computes: row for row in watching.rows("nano", 100, replies(2.0), "")}
    whole = rows["watching"]
    assert whole.timing.seconds == 2 and whole.details["compiling_s"] == 10 and whole.details["frames_per_s"] == 50
    assert whole.flops == 150 and rows["vision"].flops == 100 and rows["pre-fill"].flops == 50
    seconds = {name: rows[name].timing.seconds for name in rows}
    assert seconds["vision"] == 1 and seconds["pre-fill"] == 0.5
    assert seconds["sparse level"] == seconds["reading and other"] == 0.25
    assert whole.details["peak_bytes"] == 9000 and whole.memory_bytes == 500, "compiling counts in the first only"
    [cut] = watching.rows("nano", 100, replies(2.0)[:2], "not done within 3 s")
    assert cut.timing is None and "not done within 3 s" in cut.note


def side(name: str, seconds: list[float], loaded: int, peak: int) -> Row:
    found = comparison.Side(name, workers.JAX)
    found.replies = [{"loaded_bytes": loaded, "peak_bytes": peak, "about": "x", "threads": 2}]
    found.replies += [{"seconds": s, "core_seconds": 2 * s} for s in seconds]
    return comparison.side_row(found, Row("case", name, "pre-fill", 1))


def test_targets_are_reached_or_missed_by_medians_and_by_memory_above_the_loaded_model():
    caches = {OURS: np.ones(4), TORCH: np.full(4, 1 + 1e-6)}
    ours = side(OURS, [1, 1, 9], 400, 500)
    found = comparison.compare(ours, side(TORCH, [2.5, 2, 3], 100, 300), caches)
    assert found.details["times_faster"] == 2.5 and found.details["fast_enough"]
    assert found.details["memory_share"] == 0.5 and found.details["small_enough"]
    assert not found.wrong and found.error == pytest.approx(1e-6, rel=1e-3)
    slow = comparison.compare(ours, side(TORCH, [1.9], 100, 290), caches)
    assert not slow.details["fast_enough"] and not slow.details["small_enough"]
    assert comparison.compare(ours, ours, {**caches, OURS: np.full(4, np.nan)}).wrong


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks restart on Linux only")
def test_peaks_restart_where_they_are_reset():
    many = np.ones(64 * 2**20, np.uint8)
    del many
    before = workers.reset_peak()
    quiet = workers.peak() - before
    some = np.ones(32 * 2**20, np.uint8)
    assert quiet < 16 * 2**20 and workers.peak() - before >= some.nbytes


def test_a_worker_that_hangs_fails_refuses_or_does_not_run_leaves_its_reason(tmp_path):
    script = tmp_path / "some.py"
    script.write_text(
        "import json, sys, time\nwhat = json.load(sys.stdin)['what']\nprint('noise')\nprint('{\"a\": 1}', flush=True)\n"
        "if what == 'hang': time.sleep(60)\nif what == 'fail': sys.exit('it broke')\n"
        "if what == 'refuse': print('{\"refused\": \"no GPU\"}')\n"
    )
    one, seen = [{"a": 1}], []
    assert workers.run(script, {"what": "end"}, limit_s=60, on_reply=seen.append) == (one, "") and seen == one
    assert workers.run(script, {"what": "fail"}, limit_s=60) == (one, "the worker ended with code 1: it broke")
    assert workers.run(script, {"what": "refuse"}, limit_s=60)[1] == "no GPU"
    # However slowly the worker starts, it is killed: with its reply or before it.
    found, failure = workers.run(script, {"what": "hang"}, limit_s=2)
    assert found in (one, []) and failure == "not done within 2 s"
    assert "does not run" in workers.run(script, {}, python="no-such-python", limit_s=60)[1]


def test_a_side_that_ends_between_two_runs_says_why_and_keeps_its_replies(tmp_path):
    script = tmp_path / "some.py"
    script.write_text(
        "import sys\nfor line, key in zip(sys.stdin, ['peak_bytes', 'seconds']):\n    print('{\"%s\": 1}' % key, flush=True)\n"
        "sys.exit('it broke')\n"
    )
    found = comparison.Side(OURS, script)
    with ExitStack() as stack:
        found.start(stack, {}, 60, {})
        for _ in range(3):
            found.run_once()
        found.finish()
    assert found.failure == "the worker ended with code 1: it broke"
    assert found.replies == [{"peak_bytes": 1}, {"seconds": 1}]


@pytest.mark.slow
def test_watching_from_end_to_end(monkeypatch, tmp_path):
    """Two lengths in this process, and our side of the comparison in one of its own."""

    def run(module, request, *, limit_s, on_reply=lambda _: None, **_):
        found = []
        monkeypatch.setattr(jax_worker, "reply", lambda **line: (found.append(line), on_reply(line)))
        jax_worker.TASKS[request["task"]](request, iter(()))
        return json.loads(json.dumps(found)), ""

    monkeypatch.setattr(workers, "run", run)
    arguments = ["--frames=24", "--samples=1", "--turns=1", "--against=torch", "--torch_python=no-such-python"]
    assert main(["watching", *arguments, f"--out={tmp_path}"]) == 0
    document = json.loads((tmp_path / "watching.json").read_text())
    assert document["complete"] and document["timings"] == "measured"
    rows = {(row["name"], row["computes"]): row for row in document["rows"]}
    config, tokenizer = planning.model_of("nano")
    layout = planning.layout_for(config, tokenizer, 24, 1.0)
    whole = rows["nano", "watching"]
    details = whole["details"]
    assert whole["frames"] == 24 and details["tokens"] == layout.length
    assert details["flops"] == planning.plan(config, layout, PrefillRule(), question_tokens=0).flops
    assert len(details["runs"]) == 2 and details["runs"][0]["total_s"] > whole["seconds"] > 0
    stages = [row["seconds"] for row in document["rows"] if row["name"] == "nano" and row["computes"] != "watching"]
    assert len(stages) == 4 and min(stages) >= 0 and sum(stages) == pytest.approx(whole["seconds"])
    assert details["peak_bytes"] > details["loaded_bytes"] > 2**20 and whole["memory_bytes"] > 0
    assert details["planned_bytes"] > details["cache_bytes"] > 0
    assert rows[OURS, "pre-fill"]["seconds"] > 0 and rows[OURS, "pre-fill"]["memory_bytes"] > 0
    torch = rows[TORCH, "pre-fill"]
    assert torch["seconds"] is None and "no-such-python does not run" in torch["note"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"watching.{kind}" for kind in ("json", "md", "png")]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks restart on Linux only")
def test_the_peak_of_watching_is_that_of_the_plan(monkeypatch):
    # Programs as users have them; the compilation cache would not distinguish them from those of the tests.
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    request = {"task": "watch", "frames": 1600, "model": "nano", "samples": 1, "seed": 0}
    found, failure = workers.run(workers.JAX, request, limit_s=240, env=watching.RETURN_BLOCKS)
    assert not failure
    planned = next(line["planned_bytes"] for line in found if "planned_bytes" in line)
    run = [line["run"] for line in found if "run" in line][1]
    # What the interpreter takes, and a batch that is freed a moment late, does not grow with the video.
    assert 0.95 * planned < run["peak_bytes"] - run["before_bytes"] < 1.05 * planned + 6 * 2**20


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


def compare(monkeypatch, folder: Path, *arguments: str) -> tuple[int, dict]:
    """Exit code and rows of a comparison without watching."""
    monkeypatch.setattr(watching, "watch", lambda *_: [])
    monkeypatch.setattr(watching, "describe", lambda _: (MACHINE, CEILINGS))
    tiny = ["--frames=24", "--samples=1", "--turns=1", "--threads=1", "--against=torch", f"--out={folder}"]
    code = main(["watching", *tiny, *arguments])
    rows = json.loads((folder / "watching.json").read_text())["rows"]
    return code, {(row["name"], row["computes"]): row for row in rows}


@needs_torch
@pytest.mark.parametrize("visual", [[], ["--visual=20"]])
def test_torch_and_ours_make_the_same_cache(monkeypatch, tmp_path, visual):
    code, rows = compare(monkeypatch, tmp_path, *visual)
    assert code == 0 and rows[TORCH, "golden logits"]["error"] < 1
    assert rows[OURS, "pre-fill"]["error"] < 1e-5 and rows[OURS, "pre-fill"]["details"]["times_faster"] > 0
    assert rows[TORCH, "pre-fill"]["details"]["threads"] == rows[OURS, "pre-fill"]["details"]["threads"] == 1


@needs_torch
def test_a_baseline_that_misses_the_golden_logits_is_not_timed(monkeypatch, golden, tmp_path):
    changed = tmp_path / "golden"
    changed.mkdir()
    for file in (golden / "prefill_chunked.npz", golden / "tiny_checkpoint"):
        (changed / file.name).symlink_to(file)
    dense = dict(np.load(golden / "prefill_dense.npz"))
    key = next(key for key in dense if key.endswith("_logits") and "greedy" not in key)
    np.savez(changed / "prefill_dense.npz", **{**dense, key: dense[key] + 1e-3})
    code, rows = compare(monkeypatch, tmp_path, f"--golden={changed}")
    assert code == 1 and rows[TORCH, "golden logits"]["wrong"]
    assert rows[TORCH, "pre-fill"]["seconds"] is None and "golden" in rows[TORCH, "pre-fill"]["note"]


def test_real_sizes_are_too_much_for_a_cpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(workers, "run", lambda *_, **__: ([{"accelerator": False}], ""))
    assert main(["watching", "--model=real", f"--out={tmp_path}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("experiments.bench: ") and "too much for a CPU" in line and not list(tmp_path.iterdir())


def test_a_mask_that_is_too_large_is_not_made(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "_MOST_TOKENS", 10)
    code, rows = compare(monkeypatch, tmp_path)
    assert code == 0 and "GB" in rows[TORCH, "pre-fill"]["note"]
