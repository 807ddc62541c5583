"""Standard output that is full, closed or in another encoding."""

import errno
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


def failure(capsys, argv=PLAN) -> str:
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("argv", [PLAN, [], ["--help"], ["--version"], ["ask", "--help"]], ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_device_is_one_line(monkeypatch, capsys, argv, buffered):
    with open("/dev/full", "w") as full:
        full.reconfigure(write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", full)
        assert "No space left" in failure(capsys, argv)


def test_errors_that_cannot_be_written_keep_the_code(monkeypatch):
    def fail(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.stderr, "write", fail)
    assert cli.main(["plan", "--frames", "0"]) == 2


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
    with jax.default_device(None), pytest.raises(RequestError, match="cuda") as caught:
        vxl2_jax.load()
    assert "\n" not in str(caught.value)


def test_numerics_do_not_depend_on_the_configuration_of_jax():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), hardware.numerics("float32"):
        assert (jnp.zeros(3) + np.arange(3)).dtype == jnp.float32
