"""The benchmarks of kernels run end to end on a CPU, mark timings there as not measured, and count FLOPs correctly."""

import argparse
import json
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench import arguments, costs, machine, masks, measure, plot, problems
from experiments.bench.__main__ import main
from experiments.bench.cases import attention, vision
from experiments.bench.report import BASELINE, NotRun, Report, Row, exponent
from pallas_kernels.attention import KVCache
from pallas_kernels.attention.tile_sizes import TileSizes
from vxl2_jax import config, planning
from vxl2_jax.config import video_xl_2
from vxl2_jax.encode import layout_of
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs, natural_mask
from vxl2_jax.models import dts
from vxl2_jax.models import video_xl_2 as model_of_parts

CEILINGS = measure.Ceilings(flops=1e12, bytes=1e11, product="a product", copy="a copy")


@pytest.fixture(autouse=True)
def quick_weights(monkeypatch):
    """Random weights without compiling a generator of random numbers for every array."""

    def weights(model: config.ModelConfig, parts, dtype: str, seed: int) -> dict:
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(lambda key: model_of_parts.init(key, model), jax.random.key(0))

        def draw(path, leaf):
            return jnp.asarray(0.02 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale"), dtype)

        return jax.tree_util.tree_map_with_path(draw, {part: shapes[part] for part in parts})

    monkeypatch.setattr(problems, "weights", weights)


def results(folder, name: str, *args: str) -> list[dict]:
    """Rows of a run. Checks that its files are complete and mark a CPU's timings as not measured."""
    assert main([name, *args, f"--out={folder}"]) == 0
    document = json.loads((folder / f"{name}.json").read_text())
    table = (folder / f"{name}.md").read_text()
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert machine.NOT_MEASURED in table and document["timings"] == machine.NOT_MEASURED
    assert document["complete"] and document["settings"]["out"] == str(folder)
    assert all(document["ceilings"][unit] > 0 for unit in ("flops", "bytes"))
    assert {"device", "jax", "jaxlib", "commit", "date"} <= set(document)
    for row in document["rows"]:
        assert row["name"] in table and (row["seconds"] or row["note"]), "a row without a timing has a note"
        assert not row["wrong"]
        if row["seconds"]:
            assert len(row["rounds"]) == 2 and row["share"] == pytest.approx(row["floor_s"] / row["seconds"])
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.{kind}" for kind in ("json", "md", "png")]
    return document["rows"]


@pytest.mark.slow
def test_attention_from_end_to_end(tmp_path):
    tiny = ["--frames=24", "--visual=8", "--stride_groups=3", "--block_size=2", "--prev_blocks=1"]
    tiny += ["--backends=ampere,reference", "--tiles=32,32;64,48", "--baselines=xla,cudnn"]
    rows = {row["name"]: row for row in results(tmp_path, "attention", *tiny)}
    visible, causal = attention_pairs(problems.video_layout(24, 8), PrefillRule(2, 1))
    assert visible < causal
    for name in ("ampere 32,32,2,4", "reference"):
        assert rows[name]["flops"] == 4 * 128 * 2 * visible and rows[name]["error"] < 1e-2
        assert rows[name]["details"]["strides"] == [0, 1]
    assert "power of two" in rows["ampere 64,48,2,4"]["note"]
    plain = rows["jax.nn.dot_product_attention, XLA"]
    assert plain["flops"] == 4 * 128 * 2 * causal and plain["kind"] == BASELINE and plain["error"] < 1e-2
    assert "NVIDIA" in rows["jax.nn.dot_product_attention, cuDNN"]["note"]


def test_gradients_are_those_of_plain_jax(tmp_path):
    tiny = ["--frames=24", "--visual=8", "--block_size=2", "--prev_blocks=1", "--backends=tpu"]
    rows = {row["name"]: row for row in results(tmp_path, "gradient", *tiny)}
    visible, _ = attention_pairs(problems.video_layout(24, 8), PrefillRule(2, 1))
    assert rows["tpu"]["flops"] == 10 * 128 * 2 * visible
    assert (
        0 < rows["tpu"]["error"] < 1e-2 and "interpreted" in rows["tpu"]["note"] and "plain" not in rows["tpu"]["note"]
    )
    assert rows["plain JAX"]["error"] == 0


@pytest.mark.slow
def test_decoding_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.bench.cases.decoding.QUESTIONS", 2)
    tiny = ["--frames=128", "--visual=8", "--caches=mixed", "--backends=reference", "--baselines=xla", "--layers=1"]
    rows = results(tmp_path, "decoding", *tiny, "--model", "--new_tokens=2")
    layout = problems.video_layout(128, 8)  # 8 chunks of 4 groups: prefix, first, last and 4 others are dense
    keys = layout.length - 2 * 4 * (8 - 8 // 4)
    step = next(row for row in rows if row["case"] == "128 frames, mixed, 1 row" and row["name"] == "reference")
    assert step["computes"] == f"1 layers, {keys} keys" and step["flops"] == 4 * 128 * 2 * keys and step["error"] < 1e-2
    assert step["bytes"] == 2 * 128 * 2 * (2 + keys)
    assert any(row["name"] == "assemble" for row in rows)
    whole = {row["computes"]: row for row in rows if row["case"] == "128 frames, mixed, model"}
    assert {"each further token", "1 question × 2 tokens", "2 questions × 2 tokens"} < set(whole)
    assert whole["2 questions × 2 tokens"]["flops"] == 2 * whole["1 question × 2 tokens"]["flops"]


def test_decoding_reads_segments_in_place_by_a_kernel(tmp_path):
    tiny = ["--frames=128", "--visual=8", "--rows=2", "--caches=mixed", "--backends=ampere", "--baselines=none"]
    [row] = results(tmp_path, "decoding", *tiny, "--layers=2")
    assert row["error"] < 1e-2 and "interpreted" in row["note"]


def test_vision_from_end_to_end(tmp_path, monkeypatch):
    nano = config.nano(512)
    nano = replace(nano, vision=replace(nano.vision, layers=1))
    monkeypatch.setattr(vision, "model_config", lambda _: nano)
    found = results(tmp_path, "vision", "--frames=4", "--backends=reference", "--baselines=xla,mgpu")
    rows = {(row["name"], row["computes"]): row for row in found}
    assert rows["reference", "SigLIP tower"]["flops"] == 4 * costs.tower_flops(nano.vision)
    assert rows["reference", "SigLIP, DTS, projector"]["details"]["frames_per_s"] > 0
    assert rows["reference", "attention, 49 patches, 2 heads of 72"]["flops"] == 4 * 4 * 72 * 2 * 49**2


@pytest.mark.parametrize("arguments", [
    ["attention", "--frames=x"], ["attention", "--backends=cuda"], ["attention", "--baselines=flash"],
    ["attention", "--tiles=a"], ["attention", "--strides=0"], ["attention", "--heads=3", "--kv_heads=2"],
    ["vision", "--frames=3"], ["decoding", "--new_tokens=1"], ["watching", "600"],
])  # fmt: skip
def test_bad_arguments_end_with_one_line_and_leave_no_files(arguments, tmp_path, capsys):
    try:
        code = main([*arguments, f"--out={tmp_path}"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and "experiments.bench" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@st.composite
def videos(draw):
    visual, groups = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    stamps = tuple(draw(st.lists(st.integers(1, 4), min_size=groups, max_size=groups)))
    rule = PrefillRule(draw(st.integers(1, 4)), draw(st.sampled_from([None, 0, 1, 3])))
    return Layout(draw(st.integers(0, 5)), stamps, visual), rule


@given(video=videos())
def test_the_mask_of_two_tokens_follows_the_layout(video):
    layout, rule = video
    mask, window, every = natural_mask(layout, rule), masks.window(rule), np.arange(layout.length)
    orders = {False: every, True: np.concatenate([layout.visual_positions(), layout.global_positions()])}
    for streams, order in orders.items():
        tokens = masks.tokens(layout, rule, streams=streams)
        found = masks.visible(every[:, None], every[None], tokens, window)
        np.testing.assert_array_equal(found, mask[np.ix_(order, order)])


@given(video=videos(), stride=st.integers(1, 4))
def test_flops_and_bytes_are_those_of_the_mask(video, stride):
    layout, rule = video
    heads, kv_heads, width = 4, 2, 8
    sizes = {"heads": heads, "kv_heads": kv_heads, "width": width, "dtype": "bfloat16"}
    args = argparse.Namespace(stride_groups=stride, strides="all", **sizes)
    problem = attention.make_problem(layout, rule, args)
    mask = natural_mask(layout, rule)
    flops = nbytes = 0
    bounds = np.concatenate([[0], layout.timestamp_ends[stride - 1 :: stride], [layout.global_length]])
    for number in range(len(problem.planned)):
        visual = layout.visual_positions()[number * stride * layout.visual : (number + 1) * stride * layout.visual]
        for rows in (visual, layout.global_positions()[bounds[number] : bounds[number + 1]]):
            seen = mask[rows]
            # A pair is `width` products and sums for its logit, and as many for its part of the weighted sum.
            flops += 2 * 2 * width * heads * int(seen.sum())
            keys, queries = int(seen.any(axis=0).sum()) * kv_heads, len(rows) * heads
            nbytes += 2 * width * (2 * keys + 2 * queries)
    assert problem.work() == (flops, nbytes)
    assert flops == costs.attention_flops(attention_pairs(layout, rule)[0], heads, width)


def test_flops_of_the_model_are_those_of_the_design():
    released = config.video_xl_2()
    assert costs.tower_flops(released.vision) == pytest.approx(642e9, rel=1e-3)
    assert costs.dts_flops(released) / 4 == pytest.approx(52e9, rel=0.02)


def products(jaxpr) -> int:
    """FLOPs of all matrix products and convolutions of a program, whatever it calls."""
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


def test_flops_of_the_vision_side_are_those_of_its_program():
    nano = config.nano(512)
    params = jax.eval_shape(lambda key: model_of_parts.init(key, nano), jax.random.key(0))
    grid, side, width = nano.resized_grid, nano.vision.image_size, nano.vision.width

    def counted(f, *shape, dtype=jnp.float32):
        return products(jax.make_jaxpr(f)(params, jnp.zeros(shape, dtype)).jaxpr)

    def tower(p, x):
        return model_of_parts.frame_features(p, nano, x)

    assert costs.tower_flops(nano.vision) == counted(tower, 1, side, side, 3, dtype=jnp.uint8)
    assert costs.projector_flops(nano) == counted(lambda p, x: model_of_parts.project(p, nano, x), 1, grid, grid, width)

    def synthesis(p, x):
        return dts.DTS(nano.norm_groups, nano.max_relative).apply({"params": p["dts"]}, x)

    assert costs.dts_flops(nano) == counted(synthesis, 1, nano.frames_per_group, grid, grid, width)


def test_a_random_model_lays_out_videos_as_the_plan_does(monkeypatch):
    monkeypatch.setattr(problems, "weights", lambda *_: {})
    model = problems.random_model(video_xl_2(), dtype="bfloat16", seed=0)
    released = planning.layout_for(video_xl_2(), None, 4000, 1.0)
    seconds = [4.0 * group for group in range(released.groups)]
    layout, ids = layout_of(model, seconds)
    lengths = released.timestamp_lengths
    assert (layout.prefix, layout.timestamp_lengths) == (released.prefix, lengths) and ids.max() < 152064
    assert problems.video_layout(4000, 144).timestamp_lengths == lengths
    assert problems.video_layout(10000, 144).length == pytest.approx(385e3, rel=1e-2)


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
    dots = re.compile(r" (dot|fusion|custom-call|call)\([^\n]*dot_general")
    assert sum(len(dots.findall(part)) for part in inside) >= 2


def test_timings_add_up():
    timing = measure.Timing((1.0, 3.0))
    assert timing.seconds == 2 and timing.spread == 1 and timing.times(2).rounds == (2.0, 6.0)
    assert measure.Timing.total([timing, timing]).rounds == (2.0, 6.0)


def test_strides_are_chosen_evenly():
    assert attention.timed_strides("all", 3) == (0, 1, 2) and attention.timed_strides("median", 5) == (2,)
    assert attention.timed_strides("3", 41) == (0, 20, 40) and attention.timed_strides("9", 2) == (0, 1)


def test_the_reference_is_plain_attention(rng=np.random.default_rng(0)):
    q, k, v = (rng.normal(size=shape) for shape in ((3, 4, 8), (2, 6, 8), (2, 6, 8)))
    starts, stops = np.asarray([[0, 1, 2]]), np.asarray([[1, 4, 6]])
    got = measure.reference_attention(q, (KVCache(k[None], v[None]),), starts, stops)
    for n in range(3):
        for h in range(4):
            weights = np.exp(k[h // 2, starts[0, n] : stops[0, n]] @ q[n, h] / math.sqrt(8))
            mixed = weights @ v[h // 2, starts[0, n] : stops[0, n]] / weights.sum()
            np.testing.assert_allclose(got[n, h], mixed, rtol=1e-4)
    assert math.isnan(measure.relative_error(jnp.full(3, jnp.nan), jnp.ones(3)))


def report(folder, limit_s=60.0) -> Report:
    described = {**machine.describe(jax.devices()[0]), "timings": "measured"}
    return Report("some", folder, described, {}, CEILINGS, limit_s)


def test_every_row_is_on_disk_at_once_and_nan_is_wrong(tmp_path):
    found = report(tmp_path)
    timing = measure.Timing((0.1, 0.1))
    row = Row("case", "kernel", "pairs", 1e9, 1e6, timing, error=float("nan"), tolerance=1e-2)
    found.add(row)
    document = json.loads((tmp_path / "some.json").read_text())
    assert not document["complete"] and document["rows"][0]["wrong"] and document["rows"][0]["error"] == "nan"
    assert "WRONG" in (tmp_path / "some.md").read_text() and found.wrong == [row]
    assert document["rows"][0]["floor_s"] == 1e-3 and document["rows"][0]["bound"] == "arithmetic"


def test_a_row_that_fails_or_starts_too_late_records_why(tmp_path):
    def fails(error):
        def measured():
            raise error

        return measured

    found, row = report(tmp_path), Row("case", "kernel", "pairs", 1, 1)
    found.attempt(row, fails(RuntimeError("out of memory\nmore")))
    found.attempt(row, fails(NotRun("no GPU")))
    late = report(tmp_path, limit_s=0)
    late.attempt(row, fails(RuntimeError))
    assert [row.note for row in found.rows] == ["failed: RuntimeError: out of memory", "not run: no GPU"]
    assert "--limit_s" in late.rows[0].note


def test_growth_is_the_power_of_the_length(tmp_path):
    frames = [100, 300, 1000]
    assert exponent([(n, 3 * n**1.7) for n in frames]) == pytest.approx(1.7)
    assert exponent([(n, 5.0) for n in frames]) == pytest.approx(0, abs=1e-9)
    assert exponent([(100, 1.0)]) is None and exponent([(1, 1.0), (2, 0.0)]) is None and exponent([]) is None
    found = report(tmp_path)
    for n in frames:
        found.add(Row("case", "kernel", "pairs", timing=measure.Timing((n**2.0,)), memory_bytes=n, frames=n))
    [fit] = found.growth()
    assert fit["seconds"] == pytest.approx(2) and fit["memory_bytes"] == pytest.approx(1)
    plot.draw(found)
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


def test_tiles_are_read_from_the_command_line():
    assert arguments.tiles("64,128;128,144,3,8") == [TileSizes(64, 128), TileSizes(128, 144, 3, 8)]
