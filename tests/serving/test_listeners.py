"""Finding the processes behind a port."""

import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stand_in.process import StandIn
from vllm_annotate.serving.listeners import processes_behind, stranger_behind, users_behind


def test_the_process_that_listens_and_its_descendants_are_behind_a_port(stand_in: StandIn) -> None:
    assert processes_behind(stand_in.port) == {stand_in.pid}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            assert {os.getpid(), child.pid} <= processes_behind(listener.getsockname()[1])
        finally:
            child.kill()
            child.communicate()


def test_nobody_is_behind_a_port_that_nobody_listens_on(nobody: str) -> None:
    assert processes_behind(int(nobody.rpartition(":")[2])) == set()


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"),
        ("::1", "[::1]"), ("::", "127.0.0.1"), ("::", "[::1]"), ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)  # fmt: skip
def test_the_user_who_listens_is_known_whatever_the_address(bound: str, asked: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET) as listener:
        if ":" in bound:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((bound, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert users_behind(f"http://{asked}:{port}/v1") == {os.geteuid()}
        assert not stranger_behind(f"http://{asked}:{port}/v1")


def test_who_listens_at_another_address_is_not_behind_a_url(nobody: str) -> None:
    with socket.create_server(("127.0.0.3", 0)) as listener:
        assert users_behind(f"http://127.0.0.1:{listener.getsockname()[1]}/v1") == set()
    assert users_behind(f"{nobody}/v1") == set()
    assert users_behind("http://host.invalid:8000/v1") == set()


@contextmanager
def server_of_another_user(model: str, port: int = 0) -> Iterator[tuple[str, Path]]:
    """A server that runs as nobody: its URL, and a file with the headers that it got."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"
        command = [sys.executable, "-c", STRANGER, model, str(seen), str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", seen
            process.kill()


STRANGER = """
import encodings.idna, http.server, json, os, sys  # all of it: another user may not read the rest

seen = open(sys.argv[2], "a", buffering=1)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.write(f"{self.path} {self.headers}")
        body = json.dumps({"data": [{"id": sys.argv[1]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def test_another_users_server_is_told_from_ones_own() -> None:
    with server_of_another_user("m") as (url, _):
        assert stranger_behind(url) == pwd.getpwuid(65534).pw_name
