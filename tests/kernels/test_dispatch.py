"""Which kernel is selected and why, and the one entry point over every backend."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import backend_like_the_reference, backends, problem

from pallas_kernels import attention
from pallas_kernels.attention import dispatch, tile_sizes
from pallas_kernels.attention.kernel import BACKENDS
from pallas_kernels.attention.tile_sizes import TileSizes

NEW_JAX = jax.__version_info__ >= (0, 11)


def gpu(kind: str, capability: str):
    return SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)


A100, T4 = gpu("NVIDIA A100-SXM4-80GB", "8.0"), gpu("Tesla T4", "7.5")
H200, B200 = gpu("NVIDIA H200", "9.0"), gpu("NVIDIA B200", "10.0")
V5E = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "kernel", "reason"),
    [
        (CPU, "float32", "reference", "cpu"),
        (T4, "float16", "reference", "Tesla T4"),
        (A100, "bfloat16", "ampere", "NVIDIA A100"),
        (B200, "bfloat16", "ampere", "NVIDIA B200"),
        (V5E, "bfloat16", "tpu", "TPU v5 lite"),
        (V5E, "float16", "reference", "bfloat16"),
        (H200, "bfloat16", "hopper" if NEW_JAX else "ampere", "NVIDIA H200" if NEW_JAX else "jax 0.11"),
        (H200, "float32", "reference", "not ampere"),
        (A100, "float32", "reference", "bfloat16 or float16"),
    ],
)
def test_the_best_kernel_that_can_run_is_selected_with_the_reason(device, dtype, kernel, reason):
    choice = attention.choose_kernel(dtype=dtype, width=128, device=device)
    assert choice.kernel.name == kernel and not choice.kernel.interpret
    assert reason in choice.reason and "\n" not in choice.reason
    assert choice.fallback == (device is not CPU and ("not " in choice.reason or kernel == "reference"))


@pytest.mark.parametrize(
    ("name", "device", "dtype", "width", "reason"),
    [
        ("flash", CPU, "bfloat16", 128, "choose auto, tpu, hopper, ampere, reference"),
        ("hopper", A100, "bfloat16", 128, "choose ampere or reference"),
        ("tpu", T4, "bfloat16", 128, "choose reference"),
        ("tpu", V5E, "float16", 128, "bfloat16"),
        ("tpu", V5E, "bfloat16", 256, "256"),
        ("hopper", H200, "float32", 128, "float32" if NEW_JAX else "jax 0.11"),
    ],
)
def test_what_cannot_run_is_refused_with_limit_and_alternative(name, device, dtype, width, reason):
    with pytest.raises(ValueError) as error:
        attention.choose_kernel(name, dtype=dtype, width=width, device=device)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_kernels_named_on_a_cpu_are_interpreted():
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
def test_every_device_has_tiles(kernel, kind):
    found = tile_sizes.lookup(kernel, kind)
    assert list(found.row_tiles) == sorted(found.row_tiles, key=lambda t: t.rows) and found.concurrent_items >= 1


@pytest.mark.parametrize("row", tile_sizes._table(), ids=lambda row: f"{row['kernel']} {row['device'] or 'else'}")
def test_every_row_of_the_table_is_accepted_by_its_kernel(row):
    if row["kernel"] == "hopper" and not NEW_JAX:
        pytest.skip("the Hopper kernel needs jax 0.11")
    cases = [(entry, 128) for entry in row["row_tiles"]]
    if row.get("full"):
        cases.append((row["full"], row["full_width"]))
    for entry, width in cases:
        refused = BACKENDS[row["kernel"]].refusal(dtype=jnp.dtype("bfloat16"), width=width, rows=entry["rows"])
        assert refused is None, refused


def test_pieces_fill_the_device_but_stay_long():
    assert dispatch.pieces_per_tile(2000, 132, 100) == 1
    assert dispatch.pieces_per_tile(4, 132, 100) == 99, "whole waves"
    assert dispatch.pieces_per_tile(112, 132, 100) * 112 >= 4 * 132
    for programs in range(1, 528):
        made = programs * dispatch.pieces_per_tile(programs, 132, 1000)
        assert 4 * 132 <= made < 3 * (4 * 132 + programs) and made >= 0.92 * 132 * -(-made // 132)
    for maximum in range(5):
        assert dispatch.pieces_per_tile(1, 1, maximum) == max(maximum, 1), (
            "one item at a time: as long as pieces stay long"
        )


def check_attend(kernel, width, dtype, atol):
    """Attention through a kernel is that of the reference; queries that see nothing get zeros and −inf."""
    q, streams, k_start, k_end = problem(3, 21, (320, 47), kv_heads=1, repeats=3, width=width, dtype=jnp.dtype(dtype))
    k_end[:, -4:] = k_start[:, -4:]
    plans = [
        attention.plan_attention(each, k_start, k_end, heads=3, streams=streams)
        for each in (kernel, attention.REFERENCE)
    ]
    attend = jax.jit(attention.attend, static_argnames="layer")
    (got, lse), (want, want_lse) = (attend(q, streams, plan, layer=1) for plan in plans)
    assert got.dtype == want.dtype and lse.dtype == jnp.float32
    np.testing.assert_allclose(got.astype("float32"), want.astype("float32"), atol=atol)
    np.testing.assert_allclose(lse, want_lse, atol=atol)
    assert not got[-4:].any() and np.isneginf(lse[-4:]).all()
    return plans[0]


def test_heads_are_padded_and_split_items_merged(monkeypatch):
    """A backend that takes only widths of 16, 32, …, on a device that runs many items at once."""
    monkeypatch.setitem(BACKENDS, "padding", backend_like_the_reference("padding", width_multiple=16))
    kernel = dataclasses.replace(
        attention.REFERENCE, name="padding", concurrent_items=64, row_tiles=(TileSizes(16, 16),)
    )
    assert check_attend(kernel, 20, "float32", 1e-5).pieces > 1


@pytest.mark.kernels
@pytest.mark.parametrize(("name", "dtype", "atol"), backends(1e-5, 3e-2))
@pytest.mark.parametrize("width", [16, 20])
def test_every_backend_agrees_with_the_reference(name, dtype, atol, width):
    check_attend(attention.choose_kernel(name, dtype=dtype, width=width, device=CPU).kernel, width, dtype, atol)


@pytest.mark.kernels
@pytest.mark.parametrize(("name", "dtype", "atol"), backends(1e-5, 3e-2))
def test_full_attention_of_short_sequences(name, dtype, atol):
    """Like the vision tower's: 9 × 9 patches of width 72, as odd as the real 27 × 27."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 81, 2, 72)), dtype) for _ in "qkv")
    kernel = attention.choose_kernel(name, dtype=dtype, width=72, device=CPU).kernel
    got = attention.full_attention(kernel, q, k, v)
    want = attention.full_attention(attention.REFERENCE, *(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got.astype("float32"), want, atol=atol)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q, streams: (q[:3], streams), r"\[4, 4, width\].*\[3, 4, 8\]"),
        (lambda q, streams: (q[:, :2], streams), r"\[4, 2, 8\]"),
        (lambda q, streams: (q[..., :6], streams), r"\[layers, 2, slots, 6\]"),
        (lambda q, streams: (q, streams[:1]), "2 streams.*1"),
    ],
    ids=["queries", "heads", "width", "streams"],
)
def test_shapes_other_than_planned_are_refused(change, reason):
    q, streams, k_start, k_end = problem(0, 4, (8, 8))
    plan = attention.plan_attention(attention.REFERENCE, k_start, k_end, heads=4, streams=streams)
    with pytest.raises(ValueError, match=reason):
        attention.attend(*change(q, streams), plan)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"heads": 5}, "5 query heads"), (dict.fromkeys(("k_start", "k_end"), np.ones((3, 4), np.int32)), r"\(3, 4\)")],
    ids=["heads", "ranges"],
)
def test_ranges_that_do_not_fit_are_refused(change, reason):
    _, streams, k_start, k_end = problem(0, 4, (8, 8))
    arguments = {"k_start": k_start, "k_end": k_end, "heads": 4, "streams": streams, **change}
    with pytest.raises(ValueError, match=reason):
        attention.plan_attention(attention.REFERENCE, **arguments)
