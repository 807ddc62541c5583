"""Videos at http addresses are read only if that is allowed, completely, and from nowhere else."""

import argparse
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vxl2_jax import VideoError
from vxl2_jax.cli import download

CONTENT = bytes(range(256)) * 9000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", {"/moved-file": "file:///etc/hostname"}.get(self.path, "/a%20b.mp4"))
        elif self.path.startswith("/a"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) + 9 * (self.path == "/a-cut")))
        else:
            self.send_response(404)
        self.end_headers()
        if self.path.startswith("/a"):
            self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ALLOWED = argparse.Namespace(allow_url=True, quiet=True)


@pytest.mark.parametrize("path", ["/a%20b.mp4?x=1", "/moved"])
def test_a_copy_exists_while_it_is_used(address, path):
    with download.local_copy(address + path, ALLOWED) as copy:
        assert Path(copy).read_bytes() == CONTENT and address not in copy
    assert not Path(copy).parent.exists()


@pytest.mark.parametrize("path", ["/none", "/moved-file", "/a-cut"])
def test_what_cannot_be_downloaded_is_one_line(address, path):
    with pytest.raises(VideoError) as error, download.local_copy(address + path, ALLOWED):
        pass
    assert path in str(error.value) and "\n" not in str(error.value)


def test_too_much_is_refused(address, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", len(CONTENT) - 1)
    with pytest.raises(VideoError, match="larger than"), download.local_copy(address + "/a", ALLOWED):
        pass


@pytest.mark.parametrize("address", ["http://[::1", "http://", "http:/", "http://a:b/", "http://a\ud800/"])
def test_what_is_no_address_is_one_line(address):
    with pytest.raises(VideoError, match="cannot be downloaded") as error, download.local_copy(address, ALLOWED):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a.mp4?b=c", "a.mp4"), ("/%2e%2e", "video"), ("/" + "é" * 200 + ".mp4", "_" * 96 + ".mp4"), ("", "video")],
)
def test_names_of_copies_are_possible_everywhere(path, name):
    assert download._name("http://example.invalid" + path) == name


def test_the_copy_is_removed_when_the_program_is_ended(address):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), download.local_copy(address + "/a", ALLOWED) as copy:
        signal.raise_signal(signal.SIGTERM)
    assert not Path(copy).parent.exists() and signal.getsignal(signal.SIGTERM) == before


def test_a_path_is_left_as_it_is():
    with download.local_copy("a.mp4", ALLOWED) as path:
        assert path == "a.mp4"


@pytest.mark.parametrize("command_", ["ask", "watch"])
def test_an_address_is_refused_unless_it_is_allowed(command, tmp_path, command_):
    more = ["what?"] if command_ == "ask" else ["--out", tmp_path / "m"]
    code, out, error = command(command_, "https://example.invalid/a.mp4", *more)
    assert code == 2 and out == "" and error.count("\n") == 1
    assert "https://example.invalid/a.mp4: an address" in error and "--allow-url" in error
