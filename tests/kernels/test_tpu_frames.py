"""The TPU kernel for full attention within frames, in Pallas' interpreter."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import reference, tpu_frames

SCALE = 0.2


@pytest.mark.parametrize(
    ("heads", "width", "patches", "rows", "dtype"),
    [
        (16, 72, 45, 32, jnp.bfloat16),  # SigLIP's heads; the last tile of rows is not full
        pytest.param(16, 72, 45, 48, jnp.float32, marks=pytest.mark.kernels),
        pytest.param(3, 128, 20, 32, jnp.bfloat16, marks=pytest.mark.kernels),  # one head at a time
        pytest.param(16, 24, 130, 144, jnp.float32, marks=pytest.mark.kernels),  # two blocks of keys
        pytest.param(2, 128, 128, 64, jnp.float32, marks=pytest.mark.kernels),  # nothing to mask
    ],
)
def test_attention_within_frames(heads, width, patches, rows, dtype):
    """Below the last patch the interpreter's memory is NaN, which must reach no result."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, patches, heads, width)), dtype) for _ in "qkv")
    columns = (a.reshape(2, patches, heads * width) for a in (q, k, v))
    got = tpu_frames.attend_frames(*columns, heads=heads, rows=rows, scale=SCALE, interpret=True)
    want = reference.full_attention(*(a.astype(jnp.float32) for a in (q, k, v)), SCALE)
    assert got.dtype == dtype
    atol = 2e-5 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(got.astype(jnp.float32).reshape(want.shape), want, atol=atol)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.float16}, "bfloat16"),
        ({"heads": 15}, "128 columns"),
        ({"heads": 8, "width": 144}, "128 columns"),
        ({"heads": 1, "width": 128}, "128 columns"),
        ({"patches": 2000}, "1024 patches"),
    ],
)
def test_what_cannot_run_is_refused(change, reason):
    problem = {"dtype": jnp.bfloat16, "heads": 16, "width": 72, "patches": 729}
    assert tpu_frames.refusal(**problem) is None
    assert reason in tpu_frames.refusal(**problem | change)
    if "width" not in change:
        heads, patches = change.get("heads", 16), change.get("patches", 9)
        x = jnp.zeros((1, patches, heads * 72 if heads > 1 else 128), change.get("dtype", jnp.bfloat16))
        with pytest.raises(ValueError, match=reason):
            tpu_frames.attend_frames(x, x, x, heads=heads, rows=16, scale=SCALE)
