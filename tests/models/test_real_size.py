"""The real-size model, 8.1 billion parameters, compiles within seconds; no weights are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import REFERENCE, KVCache
from vxl2_jax import decode, prefill
from vxl2_jax.cache import views
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import video_xl_2
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.models.video_xl_2 import encode_frames
from vxl2_jax.sampling import Sampling

CONFIG = video_xl_2()
GIB = 2**30


@pytest.fixture(scope="module")
def params():
    """In fp32: on CPUs jaxlib 0.10 widens whole stacks of bf16 weights, which other machines do not."""
    return huggingface.abstract_params(CONFIG)


def test_it_has_the_parameters_of_the_released_model(params):
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == pytest.approx(8.12e9, rel=0.001)


def test_a_pre_fill_stride_of_2048_frames_compiles_and_updates_its_cache_in_place(params):
    layout = Layout(14, (8,) * 512, CONFIG.visual_tokens)
    sizes = prefill.shape_for(layout, 16)
    stride = prefill.plan_strides(layout, PrefillRule(4, 3), np.zeros(layout.global_length, np.int32), sizes)[0]
    streams = jax.eval_shape(lambda: prefill.empty(CONFIG, sizes, jnp.float32))
    tokens = jax.ShapeDtypeStruct((16, CONFIG.visual_tokens, CONFIG.language.width), jnp.float32)
    compiled = prefill.run_stride.lower(params, CONFIG, streams, stride, tokens).compile()
    cache = sum(leaf.size * 4 for leaf in jax.tree.leaves(streams))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * GIB


@pytest.mark.slow  # tests/test_decode.py traces it
def test_a_question_over_20000_tokens_compiles(params):
    lm = CONFIG.language
    store = jax.ShapeDtypeStruct((lm.layers, lm.kv_heads, 20480, lm.head_width), jnp.float32)
    view = views.whole_view((KVCache(store, store),), [20000], REFERENCE)
    ids = np.zeros((1, 64), np.int32)
    decode.generate.lower(
        params, CONFIG, view, ids, np.full(1, 9, np.int32), Sampling(), jax.random.key(0), max_new=16
    ).compile()


def test_encoding_frames_compiles(params):
    side = CONFIG.vision.image_size
    frames = jax.ShapeDtypeStruct((16, side, side, 3), jnp.uint8)
    out = jax.jit(encode_frames, static_argnums=(1, 3)).lower(params, CONFIG, frames, 4)
    assert out.out_info.shape == (4, CONFIG.visual_tokens, CONFIG.language.width)
    out.compile()
