"""Records of servers, current and stale."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_annotate.serving.guardian import boot_id
from vllm_annotate.serving.record import ServerRecord, read_record


def test_another_process_with_the_recorded_group_id_is_not_touched(vllm: Path) -> None:
    """A daemon whose leader has exited, in a process group whose id is in an old record."""
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!"], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    stranger = int(leader.stdout.readline())
    leader.wait()
    leader.stdout.close()
    ServerRecord(leader.pid, boot_id(), 1, ["vllm"], keep=False, log=Path("x")).end()
    os.kill(stranger, 0)
    os.kill(stranger, signal.SIGKILL)


def test_a_record_of_another_boot_is_ignored(vllm: Path) -> None:
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    here = ServerRecord(os.getpid(), boot_id(), ticks, ["vllm"], keep=False, log=Path("x"))
    assert here.is_alive
    assert not replace(here, boot="another").is_alive
    assert not replace(here, boot="another").group


@pytest.mark.parametrize("content", [b"", b"{}", b'{"pid": "\\u0000", "boot": 1, "started": {}}', b"\xff", b"[1]"])
def test_an_invalid_record_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert read_record(path) is None
