"""Plans against counts made another way: golden rows, real arrays, multiplications one by one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vxl2_jax import cli, planning, prefill
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Rule
from vxl2_jax.machine import SMALL
from vxl2_jax.memory import sparse_level
from vxl2_jax.models import qwen2, siglip


def run(capsys, *args: object) -> tuple[int, str, str]:
    code = cli.main(["plan", *map(str, args)])
    return code, *capsys.readouterr()


def test_attention_pairs_are_those_of_the_original(golden, capsys):
    rows = json.loads((golden / "prefill_flops.json").read_text())["rows"]
    assert rows
    for row in rows:
        code, out, _ = run(
            capsys, "--frames", row["frames"], "--fps", 1 / row["seconds_per_frame"], "--block-size", row["block_size"],
            "--prev-blocks", row["prev_blocks"], "--question-tokens", row["suffix_tokens"], "--device", "h200", "--json",
        )
        found = json.loads(out)
        assert code == 0
        assert (found["attention_pairs_kept"], found["attention_pairs_causal"]) == (row["num_allowed"], row["upper_triangle"])


def test_bytes_are_those_of_the_arrays_that_watching_makes():
    config, layout = toys.CONFIG, toys.LAYOUT
    found = planning.plan(config, layout, Rule(), compression=2, itemsize=4, sizes=SMALL).bytes
    streams = jax.eval_shape(lambda: prefill.empty(config, prefill.capacity(layout, SMALL.stride), jnp.float32))
    sparse = jax.eval_shape(lambda s: sparse_level(s, layout, 2, config.language.rope_theta), streams)
    size = lambda tree: sum(4 * leaf.size for leaf in jax.tree.leaves(tree))
    assert found["dense"] == size(streams) and found["sparse"] == size(sparse)
    assert found["weights"] == size(toys.model().params)


def flops_of(function, *args) -> int:
    """Operations of the matrix products in a traced function, scans unrolled."""

    def count(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                ((contracted, _), _), (left, _) = equation.params["dimension_numbers"], equation.invars
                summed = np.prod([left.aval.shape[axis] for axis in contracted], dtype=np.int64)
                total += 2 * int(summed) * equation.outvars[0].aval.size
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                inner = getattr(inner, "jaxpr", inner)
                total += times * count(inner) if hasattr(inner, "eqns") else 0
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def test_operations_are_those_of_the_traced_network():
    config, params = planning.model_of("nano")[0], None
    params = jax.eval_shape(lambda k: planning.huggingface.video_xl_2.init(k, config), jax.random.key(0))
    layout = planning.layout_for(config, None, 4, 1.0)
    found = planning.plan(config, layout, Rule(), question_tokens=10).flops
    side = config.vision.image_size
    frames = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
    tower = lambda p, x: siglip.SigLIP(config.vision).apply({"params": p["vision"]}, x)
    assert found["vision"] == flops_of(tower, params, frames)

    see = lambda q, k, v, state, layer: (q, state)
    rows = lambda n: jax.ShapeDtypeStruct((n, config.language.width), jnp.float32)
    watch = lambda p, x: qwen2.run_layers(p["language"], config.language, x, see, last_keys_only=True)[0]
    ask = lambda p, x: qwen2.run_layers(p["language"], config.language, x, see)[0]
    traced = flops_of(ask, params, rows(10)) + flops_of(watch, params, rows(layout.length))
    # Tracing keeps the last layer's query product; compilers drop it, since nothing reads it.
    unread = 2 * layout.length * config.language.width * config.language.heads * config.language.head_width
    assert found["language_linear"] == traced - unread


def test_the_real_tower_takes_what_the_design_says():
    config, _ = planning.model_of("video-xl-2")
    layout = planning.layout_for(config, None, 4, 1.0)
    assert planning.plan(config, layout, Rule()).flops["vision"] / 4 == pytest.approx(642e9, rel=0.01)


def test_what_does_not_fit_is_told_what_would(capsys):
    code, out, _ = run(capsys, "--frames", 10000, "--device", "a100-40", "--json")
    found = json.loads(out)
    assert code == 0 and not found["fits"]
    most = int(found["advice"].split()[2])
    assert json.loads(run(capsys, "--frames", most, "--device", "a100-40", "--json")[1])["fits"]
    assert not json.loads(run(capsys, "--frames", most + 256, "--device", "a100-40", "--json")[1])["fits"]
    assert "the model itself does not fit; it does on l4" in json.loads(run(capsys, "--frames", 4, "--device", "t4", "--json")[1])["advice"]


def test_a_plan_for_people(capsys):
    code, out, _ = run(capsys, "--frames", 256, "--device", "h200")
    assert code == 0 and "GB of 141 GB on h200" in out and out.strip().endswith("fits")


@pytest.mark.parametrize(("arguments", "said"), [
    (("--frames", 0), "--frames must be at least 1"), (("--frames", 4, "--fps", 0), "--fps must be a positive"),
    (("--frames", 4, "--device", "abacus"), "unknown device 'abacus': choose t4"),
    (("--frames", 4, "--model", "gpt"), "choose one of them"), (("--frames", 4, "--compression", 999), "compression must be"),
])
def test_bad_options_are_one_line(capsys, arguments, said):
    code, out, error = run(capsys, *arguments)
    assert code == 2 and not out and said in error and error.count("\n") == 1


def test_a_plan_reads_no_checkpoint():
    with pytest.raises(RequestError):
        planning.model_of("/some/where")
