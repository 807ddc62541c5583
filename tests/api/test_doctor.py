"""`vxl2 doctor` reports the machine and finds weights that are not finite."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from vxl2_jax.checkpoints import huggingface
from vxl2_jax.cli import doctor


def test_the_report_of_a_sound_installation(command, model_dir, model):
    run = command("doctor", "--model", model_dir, "--json", "--quiet")
    report = json.loads(run.out)
    assert run.code == 0 and report["problems"] == []
    assert report["versions"]["jax"] and report["devices"] and report["kernels"]["reference"] == "agrees"
    assert set(report["model"]["parts"]) == set(model.params)
    assert report["folders"]
    assert "frames" in report["model"]["fits"] and list(report["model"]["activations"])[-1] == "logits"


def test_weights_that_are_not_finite_are_named(command, model, model_dir, tmp_path):
    bad = model.params | {"language": model.params["language"] | {"embed": jnp.full((119, 32), np.nan)}}
    huggingface.save(tmp_path, model.config, bad, "float32")
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    run = command("doctor", "--model", tmp_path, "--quiet")
    assert run.code == 2 and "embed" in run.err and run.err.count("\n") == 1


def test_a_wrong_reference_would_be_seen(monkeypatch):
    assert doctor.reference_error(jnp.dtype("float32")) < 1e-5
    attend = doctor.attention.attend
    monkeypatch.setattr(doctor.attention, "attend", lambda *a: (attend(*a)[0] + 0.1, None))
    assert doctor.reference_error(jnp.dtype("float32")) > 1e-3


def test_kernels_and_their_gradients_are_tested_apart(monkeypatch):
    def trial(kernel, *, gradient=False, **_):
        return "wrong" if gradient else None

    monkeypatch.setattr(doctor.kernel_trial, "trial", trial)
    found = doctor.kernel_tests(SimpleNamespace(platform="tpu", device_kind="TPU v5e"), jnp.dtype("bfloat16"))
    assert found == {"reference": "agrees", "tpu": "agrees", "tpu, gradient": "wrong"}
