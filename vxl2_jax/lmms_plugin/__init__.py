"""The model `vxl2_jax` of lmms-eval: `python -m lmms_eval --model vxl2_jax --model_args pretrained=nano --tasks …`

lmms-eval calls `manifest` by the entry point `lmms_eval.models`. Nothing here imports lmms-eval but `model`, which it
loads once it is asked for the model. `settings` reads --model_args, `requests` answers: plain Python over `Model`.
"""


def manifest():
    """What lmms-eval's registry wants to know: a `ModelManifest`, names and no classes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vxl2_jax", simple_class_path="vxl2_jax.lmms_plugin.model.Vxl2Jax")
