"""The benchmarks run end to end on a CPU, mark their timings there as not measured, and count operations correctly."""

import contextlib
import json
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import given
from hypothesis import strategies as st

from experiments import bench_attention, bench_decode, bench_vision
from experiments.bench import ceilings, counts, exact, layouts, machine, masks, measure, options, pytorch, weights
from experiments.bench.report import BASELINE, Report, Row
from pallas_kernels.attention import KVCache
from pallas_kernels.attention.tile_sizes import TileSizes
from vxl2_jax import config, prefill
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs, natural_mask
from vxl2_jax.models import dts, video_xl_2

TOP = ceilings.Ceilings(flops=1e12, bytes=1e11, product="a product", copy="a copy")


def run(script, *arguments: str) -> int:
    """Runs a script's main with these flags. Returns its exit code. XLA optimises little: that would take most of the time."""
    given = dict(argument.removeprefix("--").split("=") for argument in arguments)
    with flagsaver.flagsaver(), quickly_compiled():
        flags.FLAGS.mark_as_parsed()
        with flagsaver.as_parsed(**given):
            try:
                script.main([])
            except SystemExit as end:
                return end.code
    return 0


@contextlib.contextmanager
def quickly_compiled():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def quick_weights(model: config.ModelConfig, parts, dtype: str, seed: int) -> dict:
    """What `weights.draw` returns, without compiling a generator of random numbers for every array."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: video_xl_2.init(key, model), jax.random.key(0))

    def draw(path, leaf):
        return jnp.asarray(0.02 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale"), dtype)

    return jax.tree_util.tree_map_with_path(draw, {part: shapes[part] for part in parts})


def results(folder, name: str) -> dict:
    """The JSON of a run. Checks that its plot and table exist and mark a CPU's timings as not measured."""
    document = json.loads((folder / f"{name}.json").read_text())
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert machine.NOT_MEASURED.encode().upper() in (folder / f"{name}.png").read_bytes().upper(), "the plot's title"
    table = (folder / f"{name}.md").read_text()
    assert machine.NOT_MEASURED in table and document["timings"] == machine.NOT_MEASURED
    assert document["complete"] and document["flags"]["out"] == str(folder)
    assert all(document["ceilings"][unit] > 0 for unit in ("flops", "bytes"))
    assert {"device", "jax", "jaxlib", "torch", "commit", "date"} <= set(document)
    for row in document["rows"]:
        assert row["name"] in table and (row["seconds"] or row["note"]), "a row without a timing has a note"
        assert not row["wrong"]
        if row["seconds"]:
            assert len(row["rounds"]) == 2 and row["share"] == pytest.approx(row["floor_s"] / row["seconds"])
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.{kind}" for kind in ("json", "md", "png")]
    return document


def test_attention_from_end_to_end(tmp_path):
    tiny = ["--frames=24", "--visual=8", "--stride_groups=3", "--block_size=2", "--prev_blocks=1", f"--out={tmp_path}"]
    tiny += ["--backends=ampere,reference", "--tiles=32,32;64,48", "--baselines=xla,cudnn"]
    assert run(bench_attention, *tiny) == 0
    rows = {row["name"]: row for row in results(tmp_path, "attention")["rows"]}
    layout = layouts.video(24, 8)
    kept, causal = attention_pairs(layout, PrefillRule(2, 1))
    assert kept < causal
    for name in ("ampere 32,32,2,4", "reference"):
        assert rows[name]["flops"] == 4 * 128 * 2 * kept and rows[name]["error"] < 1e-2
        assert rows[name]["details"]["strides"] == [0, 1]
    assert "power of two" in rows["ampere 64,48,2,4"]["note"]
    plain = rows["jax.nn.dot_product_attention, XLA"]
    assert plain["flops"] == 4 * 128 * 2 * causal and plain["kind"] == BASELINE and plain["error"] < 1e-2
    assert "NVIDIA" in rows["jax.nn.dot_product_attention, cuDNN"]["note"]


def test_decode_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "draw", quick_weights)
    tiny = ["--frames=128", "--visual=8", "--kinds=mixed", "--backends=reference", f"--out={tmp_path}"]
    assert run(bench_decode, *tiny, "--baselines=xla", "--model=true", "--new_tokens=2", "--layers=1") == 0
    rows = results(tmp_path, "decode")["rows"]
    layout = layouts.video(128, 8)  # 8 chunks of 4 groups: prefix, first, last and 4 others are dense
    keys = layout.length - 2 * 4 * (8 - 8 // 4)
    step = next(row for row in rows if row["case"] == "128 frames, mixed, 1 row" and row["name"] == "reference")
    assert step["computes"] == f"1 layers, {keys} keys" and step["flops"] == 4 * 128 * 2 * keys and step["error"] < 1e-2
    assert step["bytes"] == 2 * 128 * 2 * (2 + keys)
    assert any(row["name"] == "assemble" for row in rows)
    whole = {row["computes"]: row for row in rows if row["case"] == "128 frames, mixed, model"}
    assert {"each further token", "1 question × 2 tokens", "16 questions × 2 tokens"} < set(whole)
    assert whole["16 questions × 2 tokens"]["flops"] == 16 * whole["1 question × 2 tokens"]["flops"]


def test_decode_reads_runs_in_place_by_a_kernel(tmp_path):
    tiny = ["--frames=128", "--visual=8", "--rows=2", "--kinds=mixed", "--backends=ampere", f"--out={tmp_path}"]
    assert run(bench_decode, *tiny, "--layers=2", "--baselines=none") == 0
    [row] = results(tmp_path, "decode")["rows"]
    assert row["error"] < 1e-2 and "interpreted" in row["note"]


def test_vision_from_end_to_end(tmp_path, monkeypatch):
    nano = config.nano(512)
    nano = replace(nano, vision=replace(nano.vision, layers=1))
    monkeypatch.setattr(bench_vision, "geometry", lambda large: nano)
    monkeypatch.setattr(weights, "draw", quick_weights)
    assert run(bench_vision, "--batches=4", "--backends=reference", "--baselines=xla,mgpu", f"--out={tmp_path}") == 0
    rows = {(row["name"], row["computes"]): row for row in results(tmp_path, "vision")["rows"]}
    assert rows["reference", "SigLIP tower"]["flops"] == 4 * counts.tower_flops(nano.vision)
    assert rows["reference", "SigLIP, DTS, projector"]["details"]["frames_per_s"] > 0
    assert rows["reference", "attention, 49 patches, 2 heads of 72"]["flops"] == 4 * 4 * 72 * 2 * 49**2


@pytest.mark.parametrize("arguments", [
    ["--frames=x"], ["--backends=cuda"], ["--baselines=flash"], ["--tiles=a"], ["--strides=0"],
    ["--heads=3", "--kv_heads=2"],
])  # fmt: skip
def test_bad_flags_end_with_one_line(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ceilings, "take", lambda *_, **__: TOP)
    assert run(bench_attention, "--frames=8", "--visual=4", *arguments, f"--out={tmp_path}") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("bench_attention: ")


@st.composite
def videos(draw):
    visual, groups = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    stamps = tuple(draw(st.lists(st.integers(1, 4), min_size=groups, max_size=groups)))
    rule = PrefillRule(draw(st.integers(1, 4)), draw(st.sampled_from([None, 0, 1, 3])))
    return Layout(draw(st.integers(0, 5)), stamps, visual), rule


@given(video=videos())
def test_the_mask_of_two_tokens_follows_the_layout(video):
    layout, rule = video
    mask = natural_mask(layout, rule)
    every, window = np.arange(layout.length), masks.window(rule)
    natural = masks.tokens(layout, rule)
    np.testing.assert_array_equal(masks.allowed(every[:, None], every[None], natural, window), mask)
    some = int(every[-1])
    assert bool(masks.allowed(some, 0, natural, window)) == mask[some, 0]
    apart = masks.tokens(layout, rule, in_streams=True)
    order = np.concatenate([layout.visual_positions(), layout.global_positions()])
    np.testing.assert_array_equal(masks.allowed(every[:, None], every[None], apart, window), mask[np.ix_(order, order)])


@given(video=videos(), stride=st.integers(1, 4))
def test_operations_and_bytes_are_those_of_the_mask(video, stride):
    layout, rule = video
    sizes = prefill.shape_for(layout, stride)
    planned = prefill.plan_strides(layout, rule, np.zeros(layout.global_length, np.int32), sizes)

    def cut(bounds):
        return (bounds[:, : stride * layout.visual], bounds[:, stride * layout.visual :])

    heads, kv_heads, width = 4, 2, 8
    of = bench_attention.Problem(
        layout,
        rule,
        heads,
        kv_heads,
        width,
        "bfloat16",
        sizes,
        tuple(range(len(planned))),
        [cut(one.k_start) for one in planned],
        [cut(one.k_end) for one in planned],
    )
    mask = natural_mask(layout, rule)
    flops = nbytes = 0
    bounds = np.concatenate([[0], layout.timestamp_ends[stride - 1 :: stride], [layout.global_length]])
    for number in range(len(planned)):
        visual = layout.visual_positions()[number * stride * layout.visual : (number + 1) * stride * layout.visual]
        global_ = layout.global_positions()[bounds[number] : bounds[number + 1]]
        for rows in (visual, global_):
            seen = mask[rows]
            # A pair is `width` products and sums for its logit, and as many for mixing its value.
            flops += 2 * 2 * width * heads * int(seen.sum())
            read, through = int(seen.any(axis=0).sum()) * kv_heads, len(rows) * heads
            nbytes += 2 * width * (2 * read + 2 * through)
    assert of.work() == (flops, nbytes)
    assert of.work()[0] == counts.attention_flops(attention_pairs(layout, rule)[0], heads, width)


def test_operations_of_the_model_are_those_of_the_design():
    released = config.video_xl_2()
    assert counts.tower_flops(released.vision) == pytest.approx(642e9, rel=1e-3)
    assert counts.dts_flops(released) / 4 == pytest.approx(52e9, rel=0.02)


def products(jaxpr) -> int:
    """Operations of all matrix products and convolutions of a program, whatever it calls."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            height, width, channels, _ = equation.invars[1].aval.shape
            total += 2 * equation.outvars[0].aval.size * height * width * channels
        times = equation.params["length"] if equation.primitive.name == "scan" else 1

        def is_program(p):
            return hasattr(p, "jaxpr") or hasattr(p, "eqns")

        for inner in jax.tree.leaves([*equation.params.values()], is_leaf=is_program):
            inner = getattr(inner, "jaxpr", inner)
            total += times * products(inner) if hasattr(inner, "eqns") else 0
    return total


def test_operations_of_the_vision_side_are_those_of_its_program():
    nano = config.nano(512)
    params = jax.eval_shape(lambda key: video_xl_2.init(key, nano), jax.random.key(0))
    grid, side, width = nano.resized_grid, nano.vision.image_size, nano.vision.width

    def counted(f, *shape, dtype=jnp.float32):
        return products(jax.make_jaxpr(f)(params, jnp.zeros(shape, dtype)).jaxpr)

    def tower(p, x):
        return video_xl_2.frame_features(p, nano, x)

    assert counts.tower_flops(nano.vision) == counted(tower, 1, side, side, 3, dtype=jnp.uint8)
    assert counts.projector_flops(nano) == counted(lambda p, x: video_xl_2.project(p, nano, x), 1, grid, grid, width)

    def synthesis(p, x):
        return dts.DTS(nano.norm_groups, nano.max_relative).apply({"params": p["dts"]}, x)

    assert counts.dts_flops(nano) == counted(synthesis, 1, nano.frames_per_group, grid, grid, width)


def test_a_real_layout_has_the_tokens_of_the_design():
    assert layouts.video(10000, 144).length == pytest.approx(385e3, rel=1e-2)
    assert layouts.video(9, 144).groups == 3


def test_the_timed_loop_calls_every_set_in_every_turn():
    record = []

    def call(number, first, factor):
        jax.debug.callback(lambda n, f: record.append((int(n), float(f))), number, factor)
        return first * factor

    out = measure.repeated(call, 3)([(jnp.ones(2), 2.0), (jnp.full(2, 5.0), 3.0)])
    jax.effects_barrier()
    assert sorted(record) == [(turn, factor) for turn in range(3) for factor in (2.0, 3.0)]
    np.testing.assert_array_equal(out, [15.0, 15.0], "arguments are unchanged")


def test_the_compiler_hoists_no_work_out_of_the_timed_loop():
    square = jnp.ones((64, 64))
    run = measure.repeated(lambda _, a, b: a @ b, 5)
    text = run.lower([(square, square), (square + 1, square)]).compile().as_text()
    bodies = re.findall(r"body=%?([\w.-]+)", text)
    inside = [part for part in re.split(r"\n(?=%|ENTRY)", text) if any(part.startswith(f"%{body} ") for body in bodies)]
    products = re.compile(r" (dot|fusion|custom-call|call)\([^\n]*dot_general")
    assert sum(len(products.findall(part)) for part in inside) >= 2


def test_timings_add_up():
    timing = measure.Timing(1.0, 3.0)
    assert timing.seconds == 2 and timing.spread == 1 and measure.Timing.total([timing, timing]) == (2.0, 6.0)


def test_strides_are_chosen_evenly():
    assert bench_attention.timed_strides("all", 3) == (0, 1, 2) and bench_attention.timed_strides("median", 5) == (2,)
    assert bench_attention.timed_strides("3", 41) == (0, 20, 40) and bench_attention.timed_strides("9", 2) == (0, 1)


def test_the_truth_is_plain_attention(rng=np.random.default_rng(0)):
    q, k, v = (rng.normal(size=shape) for shape in ((3, 4, 8), (2, 6, 8), (2, 6, 8)))
    starts, stops = np.asarray([[0, 1, 2]]), np.asarray([[1, 4, 6]])
    got = exact.attend(q, (KVCache(k[None], v[None]),), starts, stops)
    for n in range(3):
        for h in range(4):
            weights = np.exp(k[h // 2, starts[0, n] : stops[0, n]] @ q[n, h] / math.sqrt(8))
            mixed = weights @ v[h // 2, starts[0, n] : stops[0, n]] / weights.sum()
            np.testing.assert_allclose(got[n, h], mixed, rtol=1e-4)
    assert math.isnan(exact.relative_error(jnp.full(3, jnp.nan), jnp.ones(3)))


def report(folder, limit_s=60.0) -> Report:
    return Report("some", folder, machine.describe(jax.devices()[0]), {}, TOP, limit_s)


def test_every_row_is_on_disk_at_once_and_nan_is_wrong(tmp_path):
    found = report(tmp_path)
    row = Row("case", "kernel", "pairs", 1e9, 1e6, measure.Timing(0.1, 0.1), error=float("nan"), tolerance=1e-2)
    found.add(row)
    document = json.loads((tmp_path / "some.json").read_text())
    assert not document["complete"] and document["rows"][0]["wrong"] and document["rows"][0]["error"] == "nan"
    assert "WRONG" in (tmp_path / "some.md").read_text() and found.wrong == [row]
    assert document["rows"][0]["floor_s"] == 1e-3 and document["rows"][0]["bound"] == "arithmetic"


def test_a_row_that_fails_or_starts_too_late_records_why(tmp_path):
    row = Row("case", "kernel", "pairs", 1, 1)

    def fail():
        raise RuntimeError("out of memory\nmore")

    found = report(tmp_path)
    found.attempt(fail, row)
    late = report(tmp_path, limit_s=0)
    late.attempt(fail, row)
    assert found.rows[0].note == "failed: RuntimeError: out of memory" and "--limit_s" in late.rows[0].note


def test_without_torch_there_is_a_reason():
    case = pytorch.Case("sdpa", 1, 4, 4, 2, 1, 8)
    measured = {"dtype": "float32", "samples": 1, "seed": 0, "limit_s": 60.0}
    [missing] = pytorch.measure([case], python="no-such-python", **measured)
    assert missing.seconds is None and "does not run" in missing.note


def test_tiles_are_read_from_a_flag():
    with flagsaver.flagsaver(), flagsaver.as_parsed(tiles="64,128;128,144,3,8"):
        flags.FLAGS.mark_as_parsed()
        assert options.tile_candidates() == [TileSizes(64, 128), TileSizes(128, 144, 3, 8)]
