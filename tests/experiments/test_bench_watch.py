"""What must be true of the benchmark of watching: its fits and ratios, what it writes; it runs at tiny lengths."""

import importlib.util
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench import against, process, random_model, resident, watch_report, weights
from experiments.bench.growth import exponent
from vxl2_jax import planning
from vxl2_jax.config import video_xl_2
from vxl2_jax.encode import layout_of
from vxl2_jax.layout import PrefillRule

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "machine": {
        "device": "made up",
        "cores": 2,
        "load": 0.5,
        "jax": "0",
        "python": "3",
        "commit": None,
        "date": "2000-01-01",
    },
    "ceilings": {"flops": 1e12, "bytes": 1e11, "product": "a product", "copy": "a copy"},
}


@pytest.fixture(scope="module", autouse=True)
def on_a_cpu():
    """What the processes that benchmarks start run on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        yield


def test_growth_is_the_power_of_the_length():
    frames = [100, 300, 1000]
    assert exponent(frames, [3 * n**1.7 for n in frames]) == pytest.approx(1.7)
    assert exponent(frames, [5.0] * 3) == pytest.approx(0, abs=1e-9)
    noisy = exponent(frames, [1.1 * 100, 300, 1000])
    assert 0.9 < noisy < 1.0
    assert exponent([100], [1.0]) is None and exponent(frames, [1.0, 0.0, 2.0]) is None


def watched(frames: int, seconds: float) -> dict:
    """A length whose warm runs take `seconds` (one of them much longer), whose first took ten seconds more."""

    def one(s, peak):
        return {
            "timings": {"read": 0.0, "vision": s / 2, "prefill": s * 3 / 8},
            "sparse_s": s / 8,
            "total_s": s,
            "before_bytes": 1000,
            "peak_bytes": peak,
            "cache_bytes": 300,
        }

    flops = {"vision": 60, "dts": 20, "projector": 20, "language_linear": 40, "attention": 10}
    runs = [one(seconds + 10, 9000), one(seconds, 1500), one(5 * seconds, 1400), one(seconds, 1300)]
    return {"frames": frames, "tokens": frames * 4, "runs": runs, "flops": flops, "planned_bytes": 1, "note": ""}


def test_medians_leave_the_first_run_out():
    found = watch_report.summary(watched(100, 2.0), MACHINE["ceilings"])
    assert found["total_s"] == 2 and found["compiling_s"] == 10 and found["frames_per_s"] == 50
    assert found["stages"] == {"read": 0, "vision": 1, "prefill": 0.5, "sparse": 0.25, "other": 0.25}
    assert found["flops_per_s"] == {"vision": 100, "prefill": 100, "total": 75}
    assert found["share_of_ceiling"]["total"] == 75e-12
    assert found["peak_bytes"] == 9000 and found["watching_bytes"] == 500, "compiling counts in the first only"
    assert watch_report.summary({**watched(100, 2.0), "runs": watched(100, 2.0)["runs"][:1]}, None) == {}


def test_what_is_done_is_kept_when_the_rest_is_cut_short(tmp_path):
    document = watch_report.Document(tmp_path, {}, quiet=True)
    document.start(MACHINE)
    for frames in (100, 1000):
        document.add_watched(watched(frames, frames / 100))
        ours = against.summary(lines([frames / 50], 0, 100))
        document.add_compared({"frames": frames, "tokens": 1, "ours": ours, "torch": None, "notes": ["no torch"]})
    document.add_watched({"frames": 9000, "runs": [], "note": "not done within 3 s"})
    written = json.loads((tmp_path / "watch.json").read_text())
    assert not written["complete"] and len(written["rows"]) == 3 and "total_s" not in written["rows"][2]
    assert written["growth"]["total_s"] == pytest.approx(1) and written["growth"]["cache_bytes"] == pytest.approx(0)
    assert written["growth"]["ours_median_s"] == pytest.approx(1)
    assert "not done within 3 s" in (tmp_path / "watch.md").read_text()
    document.finish()
    assert (tmp_path / "watch.png").read_bytes().startswith(b"\x89PNG")


def lines(seconds: list[float], loaded: int, peak: int) -> list[dict]:
    timed = [{"seconds": s, "core_seconds": 2 * s} for s in seconds]
    memory = {"loaded_bytes": loaded, "peak_bytes": peak, "about": "x", "threads": 2}
    return [{"golden": {"runs": 3, "worst": 0.1}}, memory, *timed]


def test_targets_are_reached_or_missed_by_medians_and_by_what_is_above_the_loaded_model():
    caches = {"ours": np.ones(4), "torch": np.full(4, 1 + 1e-6)}
    sides = {"ours": lines([1, 1, 9], 400, 500), "torch": lines([2.5, 2, 3], 100, 300)}
    found = against.compared(sides, caches)
    assert found["times_faster"] == 2.5 and found["fast_enough"]
    assert found["memory_share"] == 0.5 and found["small_enough"]
    assert not found["wrong"] and found["difference"] == pytest.approx(1e-6, rel=1e-3)
    slow = against.compared({**sides, "torch": lines([1.9], 100, 290)}, caches)
    assert not slow["fast_enough"] and not slow["small_enough"]
    assert against.compared(sides, {**caches, "ours": np.full(4, np.nan)})["wrong"]
    assert "times_faster" not in against.compared(sides, {"ours": np.ones(4)}), "one side did not come to an end"


def test_a_mask_too_large_is_not_begun():
    setting = against.Setting(None, ROOT, None, 1, 1, 0)
    row = against.bench(10_000, setting, lambda: 100.0, lambda _: pytest.fail("begun"))
    assert "0.6 GB" in row["notes"][0] and "ours" not in row


def test_peaks_are_those_since_the_process_settled():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are counted anew on Linux only")
    many = np.ones(64 * 2**20, np.uint8)
    del many
    before = resident.settle()
    quiet = resident.peak() - before
    some = np.ones(32 * 2**20, np.uint8)
    assert quiet < 16 * 2**20 and resident.peak() - before >= some.nbytes


def test_a_process_that_hangs_fails_or_is_not_there_leaves_its_reason(tmp_path):
    script = tmp_path / "some.py"
    script.write_text(
        "import json, sys, time\nwhat = json.load(sys.stdin)['what']\nprint('noise')\nprint('{\"a\": 1}', flush=True)\n"
        "if what == 'hang': time.sleep(60)\nif what == 'fail': sys.exit('it broke')\n"
    )
    one, heard = [{"a": 1}], []
    assert process.run(script, {"what": "end"}, limit_s=60, heard=heard.append) == (one, "") and heard == one
    assert process.run(script, {"what": "fail"}, limit_s=60) == (one, "its process ended with code 1: it broke")
    # However slowly the process starts, it is stopped: with its line or before it.
    found, why = process.run(script, {"what": "hang"}, limit_s=2)
    assert found in (one, []) and why == "not done within 2 s"
    assert "does not run" in process.run(script, {}, python="no-such-python", limit_s=60)[1]


def test_a_side_that_ends_between_two_runs_says_why_and_keeps_what_it_said(tmp_path):
    script = tmp_path / "some.py"
    script.write_text(
        "import sys\nfor line, said in zip(sys.stdin, ['peak_bytes', 'seconds']):\n    print('{\"%s\": 1}' % said, flush=True)\n"
        "sys.exit('it broke')\n"
    )
    side = against.Side("ours", script)
    with ExitStack() as stack:
        side.start(stack, {}, 60, None)
        for _ in range(3):
            side.run_once()
        side.end()
    assert side.gone == "its process ended with code 1: it broke" and side.lines == [{"peak_bytes": 1}, {"seconds": 1}]
    side = against.Side("ours", script)
    with ExitStack() as stack:
        side.start(stack, {}, 0, None)
        side.run_once()
    assert side.gone == "--limit_s is used up" and not side.lines


def test_random_weights_are_a_model_that_lays_out_videos_as_the_plan_does(monkeypatch):
    draw = weights.draw
    monkeypatch.setattr(weights, "draw", lambda *given: jax.eval_shape(lambda: draw(*given)))  # shapes are enough here
    model = random_model.draw(video_xl_2(), dtype="bfloat16", seed=0)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"} == {model.dtype.name}
    released = planning.layout_for(video_xl_2(), None, 4000, 1.0)
    layout, ids = layout_of(model, [4.0 * group for group in range(released.groups)])
    assert (layout.prefix, layout.timestamp_lengths) == (
        released.prefix,
        released.timestamp_lengths,
    ) and ids.max() < 152064


def test_watching_from_end_to_end(run_script, tmp_path):
    """The machine, a length and our side of the comparison: three processes."""
    arguments = ["--frames=24", "--samples=1", "--turns=1", "--against=torch", "--python=no-such-python", "--json"]
    ended = run_script("bench_watch", *arguments, f"--out={tmp_path}")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document == json.loads((tmp_path / "watch.json").read_text()) and document["complete"]
    assert {"device", "cores", "jax", "commit", "date", "flags", "growth", "against", "target"} <= set(document)
    config, tokenizer = planning.model_of("nano")
    [row], layout = document["rows"], planning.layout_for(config, tokenizer, 24, 1.0)
    assert row["frames"] == 24 and row["tokens"] == layout.length
    assert row["flops"] == planning.plan(config, layout, PrefillRule(), question_tokens=0).flops
    assert len(row["runs"]) == 2 and row["runs"][0]["total_s"] > row["total_s"] > 0
    assert sum(row["stages"].values()) == pytest.approx(row["total_s"]) and min(row["stages"].values()) >= 0
    assert row["peak_bytes"] > row["loaded_bytes"] > 2**20 and row["watching_bytes"] > 0
    assert row["planned_bytes"] > row["cache_bytes"] > 0
    [row] = document["against"]
    assert row["ours"]["median_s"] > 0 and row["torch"] is None and "times_faster" not in row
    assert row["notes"] == ["torch: no-such-python does not run (No such file or directory)"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["watch.json", "watch.md", "watch.png"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts a peak anew")
def test_the_peak_of_watching_is_what_the_plan_says(monkeypatch):
    # Programs as users have them; the cache would not tell them from the others, and tests run many threads.
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(*next(iter(process.RETURN_BLOCKS.items())))
    request = {"task": "watch", "frames": 1600, "model": "nano", "samples": 1, "seed": 0}
    found, why = process.run("watch_process", request, limit_s=240)
    assert not why
    planned = next(line["planned_bytes"] for line in found if "planned_bytes" in line)
    run = [line["run"] for line in found if "run" in line][1]
    # What the interpreter and a batch that is not given back at once take does not grow with the video.
    assert 0.95 * planned < run["peak_bytes"] - run["before_bytes"] < 1.05 * planned + 6 * 2**20


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("visual", [None, 20])
def test_torch_and_ours_make_the_same_cache(golden, visual):
    setting = against.Setting(None, golden, 1, 1, 1, 0, visual)
    row = against.bench(24, setting, lambda: 200.0, lambda _: None)
    assert row["golden"]["runs"] == 3 and row["golden"]["worst"] < 1 and not row["wrong"] and row["difference"] < 1e-5
    assert row["times_faster"] > 0 and row["torch"]["threads"] == row["ours"]["threads"] == 1
    per_group = visual or planning.model_of("nano")[0].visual_tokens
    assert row["tokens"] == against.layout_of_video(24, None).global_length + 6 * per_group


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_a_baseline_that_misses_the_golden_logits_is_not_timed(golden, tmp_path):
    for file in (golden / "prefill_chunked.npz", golden / "tiny_checkpoint"):
        (tmp_path / file.name).symlink_to(file)
    dense = dict(np.load(golden / "prefill_dense.npz"))
    key = next(key for key in dense if key.endswith("_logits") and "greedy" not in key)
    np.savez(tmp_path / "prefill_dense.npz", **{**dense, key: dense[key] + 1e-3})
    setting = against.Setting(None, tmp_path, 1, 1, 1, 0)
    row = against.bench(16, setting, lambda: 200.0, lambda _: None)
    assert row["golden"]["worst"] > 1 and row["torch"] is None and "not timed" in row["notes"][0]


@pytest.mark.parametrize("arguments, why", [
    (["--frames=9,x"], "--frames"), (["600"], "--frames 256,600"), (["--model=real"], "too much for a CPU"),
])  # fmt: skip
def test_bad_flags_end_with_one_line(run_script, monkeypatch, arguments, why, tmp_path):
    monkeypatch.setattr(process, "run", lambda *_, **__: ([{"accelerator": False}], ""))
    ended = run_script("bench_watch", *arguments, f"--out={tmp_path}")
    assert ended.code == 2 and not ended.out
    last = ended.err.splitlines()[-1]
    assert last.startswith("bench_watch: ") and why in last and not list(tmp_path.iterdir())
