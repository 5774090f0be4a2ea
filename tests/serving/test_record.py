"""Records of servers, current and stale."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def valid(**fields: Any) -> dict[str, Any]:
    """The content of a record, of a process that is not the one which was recorded."""
    record = {"pid": os.getpid(), "boot": boot_id(), "started": 1, "command": ["vllm"], "keep": False, "log": "x"}
    return record | fields


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b"[1]", b"null", b"[" * 100_000, b'{"pid": ' * 100_000], ids=range(7)
)
def test_a_record_that_is_no_record_is_ignored(tmp_path: Path, content: bytes) -> None:
    path, said = tmp_path / "record.json", list[str]()
    for written in (content, json.dumps(valid())[:-9].encode()):
        path.write_bytes(written)
        assert read_record(path, said.append) is None
    assert [line.partition(" (")[0] for line in said] == [
        f"ignoring {path}, the record of a server: its content is not valid"
    ] * 2


@pytest.mark.parametrize("name", ["pid", "started", "command", "boot", "log", "keep"])
@pytest.mark.parametrize(
    "value",
    ["Infinity", "-Infinity", "NaN", "-1", "0.5", "1e400", "null", "[]", "{}", '"x"', r'"\u0000"', "true", "9" * 5000],
    ids=[*map(str, range(12)), "huge"],
)
def test_a_record_with_an_odd_value_is_ignored(tmp_path: Path, name: str, value: str) -> None:
    path, said = tmp_path / "record.json", list[str]()
    path.write_text(json.dumps(valid(**{name: "ODD"})).replace('"ODD"', value))
    assert read_record(path, said.append) is None
    assert len("".join(said)) < 400


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"boot": "another"}, "it was written before this machine started, or on another one"),
        ({"started": float("inf")}, "its content is not valid"),
        ({"pid": -1}, "its content is not valid"),
        ({"command": "vllm"}, "its content is not valid"),
        ({"pid": 2**31 - 1}, None),
    ],
)
def test_the_log_says_why_a_record_is_ignored_unless_its_server_has_ended(
    tmp_path: Path, fields: dict[str, Any], why: str | None
) -> None:
    path, said = tmp_path / "record.json", list[str]()
    assert read_record(path, said.append) is None
    path.write_text(json.dumps(valid(**fields)))
    assert read_record(path, said.append) is None
    assert [why in line for line in said if why] == ([True] if why else [])
    assert len(said) == bool(why)


def test_what_is_no_file_is_ignored_and_not_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        assert read_record(tmp_path / name, said.append) is None
    assert [line.rpartition(": ")[2] for line in said] == ["it is not a file"] * 2
