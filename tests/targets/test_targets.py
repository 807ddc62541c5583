"""Compile kernels and the real-size model for machines that are not here (`make test-targets`).

Each machine's compiler runs in its own process. Results are written to build/targets.jsonl.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import hlo
import jax
import jax.numpy as jnp
import pytest
import sass
import step

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TPUS, GPUS = ("v4", "v5e", "v5p", "v6e"), ("a100", "h100")
CARDS = ("t4", "l4")
OTHERS = ("v4", "v5e", "v5p", "v6e", "a100")
"""Compiled by `make test-all` only."""
NEEDED = {
    **dict.fromkeys(TPUS, ("libtpu", "libtpu")),
    **dict.fromkeys(GPUS + CARDS, ("jax_plugins.xla_cuda13", "jax-cuda13-plugin")),
}
SPILLED_OUTSIDE_LOOPS = 32
"""Bytes of spills allowed in a whole program. ptxas does not report where they are: that so few are harmless was checked
by hand for the A100 pre-fill tile only (they lie outside its unmasked loop)."""

OVERSTATED, UNDERSTATED = 0.10, 0.04
"""How far the memory that `vxl2 plan` predicts may lie above and below the compiler's plan."""

STEP_OVER_LEAST = 1.1
"""How much a decoding step may read and write, over its weights and the keys and values that the question chose."""

_HEADS = {"copy bf16[1, 3584, 3584]", "copy bf16[1, 3584, 512]"}
COPIED = {
    ("v4", "question and answer", "wide"): {
        *_HEADS,
        "dynamic-slice bf16[1, 3584, 3584]",
        "dynamic-slice bf16[1, 3584, 512]",
    },
    ("v5p", "question and answer", "wide"): _HEADS,
}
"""Known copies. On v4 and v5p XLA transposes the query, key and value matrices of each layer, once for a batch of questions
and not in a step."""

pytestmark = [pytest.mark.targets, pytest.mark.timeout(900)]


def compiled(script: str, name: str, *more: str) -> list[dict]:
    """The lines that a compile script prints for a machine; also appended to build/targets.jsonl."""
    module, package = NEEDED[name.split(":")[0]]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        why = " (not available for Python 3.11)" if sys.version_info < (3, 12) and name not in TPUS else ""
        pytest.skip(f"compiling for {name} needs {package}{why}: make test-targets")
    # Programs as users have them, not as the other tests compile theirs.
    other = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in other}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, HERE / script, name, *more], capture_output=True, text=True, env=environment, timeout=850
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    record = ROOT / "build" / "targets.jsonl"
    record.parent.mkdir(exist_ok=True)
    with record.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert done.returncode == 0, done.stderr[-3000:]
    return lines


@pytest.mark.parametrize("name", [*TPUS, *GPUS])
def test_every_kernel_compiles(name):
    lines = compiled("compile_kernels.py", name)
    problems = {line["problem"] for line in lines}
    step = {"step"} if name == "h100" else set()  # of a persistent kernel
    assert problems == {"pre-fill", "pre-fill, split", "pre-fill, int8", "decode", "decode, int8", "vision"} | step
    assert {line["kernel"] for line in lines} == {"h100": {"hopper", "ampere"}, "a100": {"ampere"}}.get(name, {"tpu"})
    if name in GPUS:
        assert all(line["spilled_bytes"] <= SPILLED_OUTSIDE_LOOPS for line in lines), lines
        assert all(line["shared_bytes"] <= (163 if name == "a100" else 227) * 1024 for line in lines), lines
        assert all(line["spilled_bytes"] == 0 for line in lines if line["kernel"] == "hopper"), lines


CYCLES = {
    "v4": {
        "16x2048x3": (459, 3628),
        "128x2048x3": (1467, 4858),
        "512x1024x2": (2784, 4835),
        "1024x1024x2": (5329, 8007),
    },
    "v5e": {"16x2048x3": (357, 557), "128x2048x3": (1184, 1425), "512x1024x2": (2059, 2276)},
    "v5p": {"16x2048x3": (364, 551), "128x2048x3": (1195, 1420), "512x1024x2": (2041, 2284)},
    "v6e": {
        "16x2048x3": (340, 355),
        "128x2048x3": (956, 1001),
        "512x1024x2": (1496, 1598),
        "1024x2048x2": (4827, 5101),
    },
}
"""Static cycles of the step over one key tile that needs no mask, with caches in bfloat16 and in int8 (libtpu 0.0.48)."""
VISION_CYCLES = {"v4": 5053, "v5e": 3046, "v5p": 3165, "v6e": 1883}
"""Those of one head of one frame of 729 patches."""
GRADIENT_CYCLES = {"v4": (2771, 1905), "v5e": (2071, 1548), "v5p": (2103, 1572), "v6e": (1430, 1341)}
"""Those of a pair of tiles of the gradient's two kernels."""
OF_PEAK = {"v4": 0.76, "v5e": 0.97, "v5p": 0.97, "v6e": 0.42}
"""The least share of the data sheet's peak that the largest tile's products take of their step's cycles."""


@pytest.mark.parametrize(
    "name", ["v5e", *(pytest.param(name, marks=pytest.mark.slow) for name in TPUS if name != "v5e")]
)
def test_a_step_of_the_tpu_kernel_takes_no_more_cycles_than_it_did(name):
    lines = compiled("static_cycles.py", name)
    found = {tile: tuple(line["cycles"] for line in lines if line["tiles"] == tile) for tile in CYCLES[name]}
    *lines, vision, of_keys, of_queries = lines
    assert vision["cycles"] <= 1.02 * VISION_CYCLES[name], vision
    gradients = of_keys["cycles"], of_queries["cycles"]
    assert all(now <= 1.02 * before for now, before in zip(gradients, GRADIENT_CYCLES[name], strict=True)), gradients
    assert len(lines) == 2 * len(found)
    worse = {
        tile: (cycles, CYCLES[name][tile])
        for tile, cycles in found.items()
        if any(now > 1.02 * before for now, before in zip(cycles, CYCLES[name][tile], strict=True))
    }
    assert not worse
    assert lines[-2]["of_peak"] >= OF_PEAK[name], "pre-filling, bfloat16"


GPU_CYCLES = {
    "h100": {"64x64x6x4": (1303,), "128x128x3x4": (2287,)},
    "a100": {
        "16x64x3x4": (1528, 2382),
        "32x64x3x4": (1984, 2176),
        "64x64x3x4": (2840, 5018),
        "128x32x3x4": (2048, 3542),
    },
    "l4": {"16x64x2x4": (1528, 1554), "64x32x2x4": (2048, 4032)},
}
"""The same of a multiprocessor, with all warps that are resident (ptxas 13.5)."""
MASKED_OVER_CLEAR = {"h100": 1.23, "a100": 1.45, "l4": 1.45}
"""How much longer one warp may take to issue a step with a mask than one without."""


@pytest.mark.parametrize("name", ["h100", "l4", pytest.param("a100", marks=pytest.mark.slow)])
def test_a_step_of_the_gpu_kernels_takes_no_more_cycles_than_it_did(name):
    lines = compiled("gpu_cycles.py", name)
    found = {tile: tuple(line["cycles"] for line in lines if line["tiles"] == tile) for tile in GPU_CYCLES[name]}
    assert len(lines) == sum(map(len, found.values()))
    worse = {
        tile: (cycles, GPU_CYCLES[name][tile])
        for tile, cycles in found.items()
        if any(now > 1.02 * before for now, before in zip(cycles, GPU_CYCLES[name][tile], strict=True))
    }
    assert not worse
    assert all(line["spills"] <= 1 for line in lines), lines
    assert all(line["masked"]["issued"] <= MASKED_OVER_CLEAR[name] * line["clear"]["issued"] for line in lines), lines


LISTING = """
	.section	.text.kernel,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x00000a0000017a02 */
                                                              /* 0x000fe40000000f00 */
.L_x_1:
        /*0010*/                   MUFU.EX2 R2, R3 ;          /* 0x0000000300027308 */
                                                              /* 0x000e220000000800 */
        /*0020*/                   FADD R2, R2, R4 ;          /* 0x0000000402027221 */
                                                              /* 0x001fc80000000000 */
        /*0030*/               @P0 BRA `(.L_x_1) ;            /* 0xfffffffc00000947 */
                                                              /* 0x000fea000383ffff */
        /*0040*/                   EXIT ;                     /* 0x000000000000794d */
                                                              /* 0x000fea0003800000 */
"""


def test_machine_code_is_read_with_its_waits():
    """The addition waits for the exponential by the barrier that it sets; then come the stalls of addition and branch."""
    instructions, labels = sass.parse(LISTING)
    assert [i.opcode for i in instructions] == ["MOV", "MUFU.EX2", "FADD", "BRA", "EXIT"]
    (loop,) = sass.loops(instructions, labels)
    body = sass.within(instructions, loop)
    assert [i.address for i in body] == [0x10, 0x20, 0x30]
    assert body[0].sets[0] == 0 and body[1].waits == (0,) and body[1].stall == 4
    assert sass.work(body, "sm_80") == {"mufu": 8, "fp32": 2, "issue": 3}
    assert sass.issued(body, "sm_80") == 22 + 4 + body[2].stall


PROGRAMS = {"pre-fill stride", "pooling", "relevance pass", "question and answer", "vision half"}
ON_HOST = PROGRAMS - {"pre-fill stride"} | {"pre-fill layer"}
"""With the dense level in host memory."""


def check(lines: list[dict], programs: set[str] = PROGRAMS) -> dict[str, bool]:
    """Whether each program fits, of programs that are as `vxl2 plan` says and copy no weights and no caches."""
    for line in lines:
        # On a T4 the vision half is the reference; its plan is generous, and it is never the largest program.
        above = 0.2 if (line["machine"], line["program"][:6]) == ("t4", "vision") else OVERSTATED
        # What a phase keeps besides covers what the pooling of a single layer takes more.
        below = 0.05 if (line["program"], programs) == ("pooling", ON_HOST) else UNDERSTATED
        assert 1 - below <= line["predicted_over_peak"] <= 1 + above, line
        known = COPIED.get((line["machine"], line["program"], line["weights"]), set())
        widened = {copy for copy in line["copies"] if copy.startswith("widen") and line["machine"] == "t4"}
        assert set(line["copies"]) - known == widened, line  # a T4 widens 8-bit weights before their products
        if "step_over_least" in line:
            assert line["step_over_least"] <= STEP_OVER_LEAST, line
    fits = {line["program"].split(",")[0]: line["fits"] for line in lines}
    assert set(fits) == programs
    return fits


@pytest.mark.parametrize("name", ["h100", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_real_size_model_compiles(name):
    fits = check(compiled("compile_model.py", name))
    assert fits["vision half"] and fits["pooling"]
    # 15.6 GB of weights and 3.2 GB of cache: one 16 GB chip cannot hold them.
    assert fits["pre-fill stride"] == fits["question and answer"] == (name not in ("v4", "v5e"))


@pytest.mark.slow
def test_caches_of_a_short_video_are_not_brought_into_vmem_as_a_whole():
    """They would fit there: XLA copied the timestamps' stream."""
    (line,) = compiled("compile_model.py", "v6e", "wide", "600", "wide", "1", "device", "question")
    assert line["copies"] == [], line


def test_a_cache_in_vmem_counts_as_a_copy_and_a_weight_does_not():
    shape, text = (28, 4, 1568, 128), "bf16[28,4,1568,128]"
    started = f"ENTRY %main (a: f32[]) -> f32[] {{\n  %copy-start.1 = ({text}{{3,2,1,0:S(1)}}, {text}{{3,2,1,0}}, u32[]) copy-start(%a)\n}}\n"
    assert hlo.copies(started, [shape]) == []
    assert hlo.copies(started, [shape], caches=[shape]) == ["copy-start bf16[28, 4, 1568, 128]"]
    assert hlo.copies(started.replace(":S(1)", ""), [shape]) == ["copy-start bf16[28, 4, 1568, 128]"]


SMALL_CARDS = [
    ("t4", 1024, "wide"),
    ("t4", 2048, "int8"),
    ("l4", 2048, "wide"),
    ("l4", 8192, "int8"),
    ("v5e", 2048, "wide"),
    ("a100", 16_000, "int8"),
]


@pytest.mark.parametrize(
    ("name", "frames", "cache"),
    [("v5e", 4096, "int8"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SMALL_CARDS)],
)
def test_the_real_size_model_fits_small_cards_with_int8_weights(name, frames, cache):
    lines = compiled("compile_model.py", name, "int8", str(frames), cache)
    assert all(check(lines).values())
    if name == "a100":  # of 40 GB, too
        assert max(line["peak_gb"] for line in lines) <= 0.95 * 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "allowed"), [("t4", 1.2), *((name, STEP_OVER_LEAST) for name in ("l4", "a100", "v5e"))]
)
def test_a_step_reads_weights_in_4_bits_once(name, allowed):
    """XLA would write them out wide in every step, and on GPUs copy all of them in every call."""
    (line,) = compiled("compile_model.py", name, "int4", "2048", "int8", "1", "device", "question")
    assert line["step_over_least"] <= allowed
    assert {
        copy for copy in line["copies"] if not copy.startswith("widen")
    } == set()  # on GPUs for the question, not for a step
    assert 1 - UNDERSTATED <= line["predicted_over_peak"] <= 1 + OVERSTATED, line


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames"), [("v5e", 9000), ("l4", 20_000)])
def test_long_videos_fit_small_cards_with_the_dense_level_in_host_memory(name, frames):
    lines = compiled("compile_model.py", name, "int8", str(frames), "int8", "1", "host")
    assert all(check(lines, ON_HOST).values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ways"), [("v5e", "4"), ("t4", "2")])
def test_a_split_model_sums_twice_a_layer_and_gathers_no_weights(name, ways):
    lines = compiled("compile_model.py", name, "int8", "4096", "int8", ways)
    by_name = {line["program"].split(",")[0]: line for line in lines}
    assert by_name["pre-fill stride"]["collectives"] == {"all-reduce": 2, "all-gather": 1}
    assert by_name["pooling"]["collectives"] == by_name["vision half"]["collectives"] == {}
    assert all(set(line["collectives"]) <= {"all-reduce", "all-gather"} for line in lines)
    assert all(0.96 <= line["predicted_over_peak"] <= 1.25 for line in lines), lines


SHARED = [
    ("v5e", "int8", "10000", "wide", "model=4,sequence=2"),
    ("v6e", "wide", "30000", "wide", "model=4,sequence=2"),
    ("a100", "int8", "100000", "int8", "sequence=4"),
    ("h100", "wide", "100000", "wide", "sequence=8"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARED, ids=lambda case: f"{case[0]}-{case[4]}")
def test_a_shared_video_is_never_gathered(case):
    lines = compiled("compile_model.py", *case)
    by_name = {line["program"].split(",")[0]: line for line in lines}
    stride = set(by_name["pre-fill stride"]["collectives"])
    assert stride == {"all-reduce", "all-gather", "collective-permute", "reduce-scatter"}
    assert by_name["pooling"]["collectives"] == by_name["vision half"]["collectives"] == {}
    assert all("all-to-all" not in line["collectives"] and line["fits"] for line in lines)
    assert all(0.95 <= line["predicted_over_peak"] <= 1.25 for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "limit"), [("v5e:2x2", "4", 8), ("l4", "1", 22.4)])
def test_low_rank_updates_over_int8_weights_fit_one_card(name, model, limit):
    (line,) = compiled("compile_training.py", name, model, "low-rank updates, int8")
    assert line["peak_gb"] <= limit, line


def test_loops_are_counted():
    def squared(x):
        return jax.lax.fori_loop(0, 7, lambda _, x: jax.lax.fori_loop(0, 5, lambda _, x: jnp.sin(x @ x), x), x)

    assert hlo.loops(jax.jit(squared).lower(jnp.ones((9, 9))).compile().as_text()) == [7, 5]


@pytest.mark.parametrize(
    "name", ["v5e", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v4", "v5p", "v6e"))]
)
def test_relevance_on_a_tpu_has_one_call_of_a_kernel_for_all_chunks_of_a_layer(name):
    (line,) = compiled("compile_model.py", name, "int8", "10000", "int8", "1", "device", "relevance")
    assert line["loops"] == [27], "layers only: 640 chunks are no loop"


def test_bytes_of_a_step_are_counted():
    """A weight is read once; an array that is updated in place counts as the part that is written; inner loops run."""

    def answer(weight, cache, x):
        def step(i, state):
            x, cache = state
            x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ weight), x)
            return x, jax.lax.dynamic_update_slice(cache, x, (i, 0))

        return jax.lax.fori_loop(0, 7, step, (x, cache))

    size, donated = 256, jax.jit(answer, donate_argnums=1)
    text = donated.lower(jnp.ones((size, size)), jnp.ones((4096, size)), jnp.ones((1, size))).compile().as_text()
    read = 3 * 4 * size * size
    assert read <= step.traffic(text, trips=7) <= 1.1 * read


def test_a_copy_of_a_layer_out_of_a_stack_is_found():
    def last(stack, x):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, stack)[0]

    stack, x = jnp.ones((3, 24, 24)), jnp.ones((2, 24))
    text = jax.jit(last).lower(stack, x).compile().as_text()
    assert hlo.copies(text, [(24, 24)], limit=1) == ["dynamic-slice f32[24, 24]"]
    assert not hlo.copies(text, [(24, 25)], limit=1)


def test_weights_in_8_bits_that_are_written_out_wide_are_found():
    def product(weight, x):
        return jax.lax.optimization_barrier(weight.astype(jnp.float32) * 0.5) @ x

    text = jax.jit(product).lower(jnp.ones((24, 24), jnp.int8), jnp.ones((24, 2))).compile().as_text()
    assert hlo.copies(text, [(24, 24)], limit=1) == ["widen f32[24, 24]"]
