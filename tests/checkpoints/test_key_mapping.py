"""The released checkpoint's 807 tensors, listed here independently of the code."""

from functools import partial

import jax
import numpy as np

from vxl2_jax.checkpoints import key_mapping
from vxl2_jax.config import video_xl_2
from vxl2_jax.models import video_xl_2 as network

IGNORED = {
    "model.text_mlp.0.weight",
    "model.text_mlp.0.bias",
    "model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
    "model.vision_tower.vision_tower.vision_model.post_layernorm.bias",
}


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def released() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of Video-XL-2 that the computation uses."""
    width, vision_width = 3584, 1152
    found = {
        "model.embed_tokens.weight": (152064, width),
        "lm_head.weight": (152064, width),
        "model.norm.weight": (width,),
    }
    for n in range(28):
        layer = f"model.layers.{n}"
        for projection, out in (("q", 28 * 128), ("k", 4 * 128), ("v", 4 * 128)):
            found |= affine(f"{layer}.self_attn.{projection}_proj", out, width)
        found[f"{layer}.self_attn.o_proj.weight"] = (width, 28 * 128)
        found |= {f"{layer}.mlp.{part}_proj.weight": (18944, width) for part in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (width, 18944)
        found |= {f"{layer}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
    tower = "model.vision_tower.vision_tower.vision_model"
    found |= affine(f"{tower}.embeddings.patch_embedding", vision_width, 3, 14, 14)
    found[f"{tower}.embeddings.position_embedding.weight"] = (729, vision_width)
    for n in range(26):
        layer = f"{tower}.encoder.layers.{n}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= affine(f"{layer}.self_attn.{projection}", vision_width, vision_width)
        found |= affine(f"{layer}.mlp.fc1", 4304, vision_width) | affine(f"{layer}.mlp.fc2", vision_width, 4304)
        found |= affine(f"{layer}.layer_norm1", vision_width) | affine(f"{layer}.layer_norm2", vision_width)
    found["model.sae.temporal_encoding"] = (4, vision_width)
    for half in (0, 3):
        spatial, temporal, conv = (f"model.sae.encoder.{half + part}" for part in range(3))
        found |= affine(f"{spatial}.norm", vision_width) | affine(f"{temporal}.norm", vision_width)
        for part in ("q", "k", "v", "proj_out"):
            found |= affine(f"{spatial}.{part}", vision_width, vision_width, 1, 1, 1)
        found |= affine(f"{temporal}.qkv", 3 * vision_width, vision_width, 1)
        found |= affine(f"{temporal}.proj_out", vision_width, vision_width, 1)
        for part in "kv":
            found[f"{temporal}.relative_position_{part}.embeddings_table"] = (129, vision_width)
        found |= affine(f"{conv}.conv", vision_width, vision_width, 3, 3, 3)
    return found | affine("model.mm_projector.0", width, vision_width) | affine("model.mm_projector.2", width, width)


def shapes_of(config) -> dict:
    return jax.eval_shape(partial(network.init, config=config), jax.ShapeDtypeStruct((2,), np.uint32))


def test_our_tree_is_the_released_checkpoint_and_nothing_else():
    expected, ours = released(), key_mapping.original_shapes(video_xl_2(), shapes_of(video_xl_2()))
    assert ours.keys() == expected.keys()
    assert ours == expected
    assert len(expected) + len(IGNORED) == 807


def test_unused_tensors_are_ignored():
    assert all(any(part in key for part in key_mapping.IGNORED) for key in IGNORED)
    assert not [key for key in released() if any(part in key for part in key_mapping.IGNORED)]


def test_every_leaf_of_our_tree_has_one_mapping(toy):
    leaves = [tuple(part.key for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(toy.params)]
    assert sorted(mapping.path for mapping in key_mapping.key_mappings(toy.config)) == sorted(leaves)


def test_transforms_are_inverses(toy):
    for mapping in key_mapping.key_mappings(toy.config):
        leaf = mapping.leaf(toy.params)
        leaf = np.asarray(leaf if mapping.layers is None else leaf[0])
        np.testing.assert_array_equal(mapping.transform.to_ours(mapping.transform.to_original(leaf)), leaf)
