"""The training loss and its gradient against a reference under a boolean mask."""

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vxl2_jax import parallel
from vxl2_jax.errors import RequestError
from vxl2_jax.training import collate
from vxl2_jax.training.loss import loss

compiled_loss = jax.jit(loss, static_argnums=1)


@pytest.fixture(scope="module")
def toy():
    return toys.model(examples.CONFIG)


@pytest.fixture(scope="module")
def plain(toy):
    return jax.jit(jax.value_and_grad(examples.plain_loss))(toy.params)


def assert_alike(found, wanted, tolerance=2e-4):
    flat = jax.tree_util.tree_leaves_with_path(found)
    for (path, a), b in zip(flat, jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.abs(b).max()), 1e-3)
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_loss_and_every_gradient_equal_the_definition(toy, plain, remat):
    batch = examples.batch()
    (value, metrics), grads = jax.jit(
        jax.value_and_grad(lambda p: loss(p, toy.config, batch, remat=remat), has_aux=True)
    )(toy.params)
    np.testing.assert_allclose(value, plain[0], rtol=2e-5)
    assert metrics["tokens"] == (batch.targets >= 0).sum() and 0 <= metrics["accuracy"] <= 1
    assert_alike(grads, plain[1])


def test_padding_changes_nothing(toy, plain):
    large = examples.batch(groups=9, rows=50)
    np.testing.assert_allclose(compiled_loss(toy.params, toy.config, large)[0], plain[0], rtol=2e-5)


def test_the_rule_matters(toy, plain, monkeypatch):
    """Ignoring chunked pre-filling gives a different loss."""
    monkeypatch.setattr(examples, "RULE", examples.PrefillRule(1, None))
    dense = compiled_loss(toy.params, toy.config, examples.batch())[0]
    assert abs(float(dense) - float(plain[0])) > 2e-4


def test_a_sample_larger_than_its_padded_size_is_refused(toy):
    frames, layout, *ids = examples.draw(0)
    with pytest.raises(RequestError, match="do not fit"):
        collate.build_sample(toy.config, frames, layout, examples.RULE, *ids, groups=4, rows=32)


def test_a_mesh_of_one_changes_nothing(toy, plain):
    mesh = parallel.make_mesh(toy.config, 1, 1)
    value = jax.jit(lambda p: loss(p, toy.config, examples.batch(), mesh=mesh)[0])(toy.params)
    np.testing.assert_allclose(value, plain[0], rtol=2e-5)
