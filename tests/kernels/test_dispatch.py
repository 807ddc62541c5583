"""Which kernel is taken, and why; and the one entry point over every backend."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import backends, problem

from pallas_kernels import attention
from pallas_kernels.attention import dispatch, reference, tile_sizes

NEW_JAX = jax.__version_info__ >= (0, 11)


def gpu(kind: str, capability: str):
    return SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


A100, T4 = gpu("NVIDIA A100-SXM4-80GB", "8.0"), gpu("Tesla T4", "7.5")
H200, B200 = gpu("NVIDIA H200", "9.0"), gpu("NVIDIA B200", "10.0")
V5E = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "kernel", "said"),
    [
        (CPU, "float32", "reference", "no kernel is written for cpu"),
        (T4, "float16", "reference", "reference, in float16: no kernel is written for Tesla T4"),
        (A100, "bfloat16", "ampere", "written for NVIDIA A100"),
        (B200, "bfloat16", "ampere", "NVIDIA B200"),
        (V5E, "bfloat16", "tpu", "TPU v5 lite"),
        (V5E, "float16", "reference", "bfloat16"),
        (H200, "bfloat16", "hopper" if NEW_JAX else "ampere", "NVIDIA H200" if NEW_JAX else "needs jax 0.11"),
        (H200, "float32", "reference", "not ampere"),
        (A100, "float32", "reference", "bfloat16 or float16"),
    ],
)
def test_the_best_kernel_that_can_run_is_taken_and_the_reason_told(device, dtype, kernel, said):
    choice = attention.choose_kernel(dtype=dtype, width=128, device=device)
    assert choice.kernel.name == kernel and not choice.kernel.interpret
    assert said in choice.reason and "\n" not in choice.reason


@pytest.mark.parametrize(
    ("name", "device", "dtype", "width", "said"),
    [
        (
            "flash",
            CPU,
            "bfloat16",
            128,
            "unknown attention kernel 'flash': choose auto, tpu, hopper, ampere, reference",
        ),
        ("hopper", A100, "bfloat16", 128, "does not run on NVIDIA A100-SXM4-80GB: choose ampere or reference"),
        ("tpu", T4, "bfloat16", 128, "does not run on Tesla T4: choose reference"),
        ("tpu", V5E, "float16", 128, "bfloat16"),
        ("tpu", V5E, "bfloat16", 256, "256"),
        ("hopper", H200, "float32", 128, "float32" if NEW_JAX else "needs jax 0.11"),
    ],
)
def test_what_cannot_run_is_refused_with_limit_and_alternative(name, device, dtype, width, said):
    with pytest.raises(ValueError) as refused:
        attention.choose_kernel(name, dtype=dtype, width=width, device=device)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_kernels_asked_for_on_a_cpu_are_interpreted():
    choice = attention.choose_kernel("tpu", dtype="bfloat16", width=128, device=CPU)
    assert choice.kernel.interpret and "interpreted" in choice.reason


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("ampere", "NVIDIA A100-SXM4-40GB"),
        ("ampere", "NVIDIA A10G"),
        ("tpu", "TPU v9"),
    ],
)
def test_every_device_finds_tiles(kernel, kind):
    found = tile_sizes.lookup(kernel, kind)
    assert list(found.by_rows) == sorted(found.by_rows, key=lambda t: t.rows) and found.cores >= 1


@pytest.mark.parametrize("row", tile_sizes._table(), ids=lambda row: f"{row['kernel']} {row['device'] or 'else'}")
def test_every_row_of_the_table_is_taken_by_its_kernel(row):
    if row["kernel"] == "hopper" and not NEW_JAX:
        pytest.skip("the Hopper kernel needs jax 0.11")
    backend = dispatch.BACKENDS[row["kernel"]]
    for entry, width in [*((entry, 128) for entry in row["by_rows"]), (row["full"], row["full_width"])]:
        refused = backend.refusal(dtype=jnp.dtype("bfloat16"), width=width, rows=entry["rows"])
        assert refused is None, refused


def test_pieces_fill_the_machine_but_stay_long():
    assert dispatch.pieces_per_tile(2000, cores=132, most=100) == 1
    assert dispatch.pieces_per_tile(4, cores=132, most=100) == 100
    assert dispatch.pieces_per_tile(112, cores=132, most=100) * 112 >= 4 * 132
    assert dispatch.pieces_per_tile(1, cores=1, most=0) == 1


@pytest.mark.parametrize(("name", "dtype", "tolerance"), backends(1e-5, 3e-2))
@pytest.mark.parametrize("width", [16, 20])
def test_every_backend_agrees_with_the_reference(name, dtype, tolerance, width):
    """Odd widths are padded, tiles cut into pieces and merged, rows that see nothing blanked."""
    kernel = attention.choose_kernel(name, dtype=dtype, width=width, device=CPU).kernel
    q, streams, k_start, k_end = problem(3, 21, (320, 47), kv_heads=1, repeats=3, width=width, dtype=jnp.dtype(dtype))
    k_end[:, -4:] = k_start[:, -4:]
    reads = attention.plan_attention(kernel, k_start, k_end, heads=3, streams=streams)
    got, lse = jax.jit(attention.attend)(q, streams, reads, layer=1)
    want, want_lse = reference.attend(q, streams, jnp.asarray(k_start), jnp.asarray(k_end), layer=1)
    assert got.dtype == want.dtype and lse.dtype == jnp.float32
    np.testing.assert_allclose(got.astype("float32"), want.astype("float32"), atol=tolerance)
    np.testing.assert_allclose(lse, want_lse, atol=tolerance)
    assert not got[-4:].any() and np.isneginf(lse[-4:]).all()


@pytest.mark.parametrize(("name", "dtype", "tolerance"), backends(1e-5, 3e-2))
def test_full_attention_of_short_sequences(name, dtype, tolerance):
    """The vision tower's: 9 × 9 patches of width 72, as odd as the real 27 × 27."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 81, 2, 72)), dtype) for _ in "qkv")
    kernel = attention.choose_kernel(name, dtype=dtype, width=72, device=CPU).kernel
    got = attention.full_attention(kernel, q, k, v)
    want = attention.full_attention(attention.REFERENCE, *(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got.astype("float32"), want, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, streams: (q[:3], streams), r"q must be \[4, 4, width\] as was prepared, not \[3, 4, 8\]"),
        (lambda q, streams: (q[:, :2], streams), "not \\[4, 2, 8\\]"),
        (lambda q, streams: (q[..., :6], streams), r"\[layers, 2, slots, 6\] like the queries"),
        (lambda q, streams: (q, streams[:1]), "ranges of 2 streams were prepared, not of 1"),
    ],
    ids=["queries", "heads", "width", "streams"],
)
def test_other_shapes_than_prepared_are_refused(change, said):
    q, streams, k_start, k_end = problem(0, 4, (8, 8))
    reads = attention.plan_attention(attention.REFERENCE, k_start, k_end, heads=4, streams=streams)
    with pytest.raises(ValueError, match=said):
        attention.attend(*change(q, streams), reads)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 5}, "5 query heads cannot share 2 key heads"),
        ({"stops": np.ones((1, 4), np.int32)}, "must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, said):
    q, streams, k_start, k_end = problem(0, 4, (8, 8))
    given = {"starts": k_start, "stops": k_end, "heads": 4, **changes}
    with pytest.raises(ValueError, match=said):
        attention.plan_attention(
            attention.REFERENCE, given["starts"], given["stops"], heads=given["heads"], streams=streams
        )
