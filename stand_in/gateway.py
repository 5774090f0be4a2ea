"""A real nginx: before stand-ins, as users have one in front of their servers, or with any other configuration."""

import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stand_in.ports import free_port

PROCESS = """
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
daemon off;
events {{ worker_connections 1024; }}
"""  # how every configuration begins
CONFIGURATION = (
    PROCESS
    + """
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream servers {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        {more}
        location / {{ proxy_pass http://servers; proxy_read_timeout {patience}; }}
    }}
}}
"""
)
ITS_OWN_HEALTH = "location = /health { return 200 ''; }"
ITS_OWN_404 = "error_page 502 504 =404 /none; location = /none { internal; return 404; }"
ITS_OWN_504 = "error_page 502 504 =504 /none; location = /none { internal; return 504; }"


@contextmanager
def gateway(ports: Sequence[int], *more: str, patience: str = "20s") -> Iterator[str]:
    """Runs nginx before servers on these ports of this machine; yields its URL. `more` goes into its configuration."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder, configuration = Path(name), Path(name) / "nginx.conf"
        folder.chmod(0o755)  # its workers run as another user
        servers = " ".join(f"server 127.0.0.1:{upstream} max_fails=0;" for upstream in ports)
        values = {"folder": folder, "port": port, "servers": servers, "more": " ".join(more), "patience": patience}
        configuration.write_text(CONFIGURATION.format(**values))
        with nginx(configuration, port) as url:
            yield url


@contextmanager
def nginx(configuration: Path, port: int) -> Iterator[str]:
    """Runs nginx with a configuration that listens on this port and logs to error.log beside it; yields its URL."""
    url, command = f"http://127.0.0.1:{port}", ["nginx", "-p", "/usr/share/nginx", "-c", str(configuration)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not _listens(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(configuration.with_name("error.log").read_text())
            time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


def _listens(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
