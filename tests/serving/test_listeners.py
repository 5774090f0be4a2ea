"""Finding the processes behind a port."""

import os
import socket
import subprocess
import sys

from stand_in.process import StandIn
from vllm_annotate.serving.listeners import processes_behind


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
