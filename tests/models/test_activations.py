"""The first layer whose activations are not finite is named, also where all weights are finite."""

import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vxl2_jax.activations import largest_by_layer
from vxl2_jax.runtime import Runtime


class Words:
    """A tokenizer of one id per word."""

    def encode(self, text):
        return [1] * len(text.split())

    encode_plain = encode


@pytest.mark.parametrize(
    ("part", "path", "layer", "first"),
    [
        (None, (), None, None),
        ("vision", ("layers", "mlp_in", "kernel"), 1, "vision.layers.1"),
        ("dts", ("halve_0", "kernel"), None, "dts.halve_0"),
        ("projector", ("linear_out", "kernel"), None, "projector"),
        ("language", ("layers", "up", "kernel"), 0, "language.layers.1"),
        ("language", ("norm", "scale"), None, "logits"),
    ],
)
def test_the_first_layer_that_is_not_finite_is_named(part, path, layer, first):
    toy = toys.model()
    params = toy.params
    if part:
        params = changed(params, (part, *path), layer)
    model = Runtime("toy", toy.config, params, Words(), "")
    frames = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), np.uint8)
    sizes = largest_by_layer(model, frames, "what is it?")
    bad = [name for name, size in sizes.items() if not np.isfinite(size)]
    assert (bad[0] if bad else None) == first
    assert len(sizes) == toy.config.vision.layers + 7 + 1 + toy.config.language.layers + 1


def changed(tree, path, layer):
    """The tree with a leaf, or one layer of it, so large that its product is infinite."""
    if not path:
        huge = jnp.full_like(tree if layer is None else tree[layer], 3e38)
        return huge if layer is None else tree.at[layer].set(huge)
    return tree | {path[0]: changed(tree[path[0]], path[1:], layer)}
