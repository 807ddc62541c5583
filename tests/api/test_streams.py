"""Standard output that is full, closed or in another encoding."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vxl2_jax
from vxl2_jax import cli, hardware
from vxl2_jax.errors import RequestError

PLAN = ["plan", "--frames", "100", "--json"]


def failure(capsys) -> str:
    assert cli.main(PLAN) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


def test_a_full_device_is_one_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert "No space left" in failure(capsys)


def test_closed_output_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert "closed" in failure(capsys)


def test_closed_errors_do_not_stop_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(PLAN) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_will_do(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    cli._prepare_streams()
    print("Is there a dög … 犬?", flush=True)
    assert raw.getvalue().endswith(b"\\u72ac?\n")


def test_a_backend_that_is_not_there_is_one_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("Unable to initialize backend 'cuda': no such plug-in\nmore")

    monkeypatch.setattr(hardware.jax, "devices", fail)
    with pytest.raises(RequestError, match="cuda") as caught:
        vxl2_jax.load()
    assert "\n" not in str(caught.value)


def test_numerics_do_not_depend_on_the_configuration_of_jax():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), hardware.numerics("float32"):
        assert (jnp.zeros(3) + np.arange(3)).dtype == jnp.float32
