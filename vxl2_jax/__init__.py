"""Video-XL-2 in JAX: watch a long video once, ask its memory many times.

import vxl2_jax as vxl2

model = vxl2.load("nano")
memory = model.watch("video.mp4")
answer = model.ask(memory, "What appears at 12 seconds?")
print(answer.text, answer.chunks)
"""

import logging

import lazy_loader

from vxl2_jax.installed import jax_problem

# Nothing is imported until it is used: `vxl2 --help` does without JAX. The names are those of __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"

if _problem := jax_problem():
    logging.getLogger(__name__).warning("vxl2_jax: %s", _problem)
