"""Video-XL-2 in JAX: watch a long video once, ask it many times."""
