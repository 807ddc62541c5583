"""The model `vxl2_jax` of lmms-eval: `python -m lmms_eval --model vxl2_jax --model_args pretrained=nano --tasks …`

lmms-eval calls `manifest` through the entry point `lmms_eval.models`. Only `model` imports lmms-eval, which loads it when
the model is used. `settings` parses --model_args; `requests` answers, in plain Python over `Model`.
"""

from typing import Any


def manifest() -> Any:
    """The entry in lmms-eval's registry, a `ModelManifest`: names, no classes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vxl2_jax", simple_class_path="vxl2_jax.lmms_plugin.model.Vxl2Jax")
