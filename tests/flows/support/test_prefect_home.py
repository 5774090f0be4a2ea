"""Which home a temporary Prefect server gets."""

import fcntl
import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.support.prefect_home import file_system_of, home_for
from tests.conftest import ROOT


def test_a_home_that_can_serve_is_used_and_shared_by_the_processes_of_a_machine(tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        homes = [home_for(tmp_path / "home", held) for held in (first, second)]
        assert [(home.path, home.note, home.is_temporary) for home in homes] == [(tmp_path / "home", "", False)] * 2


def test_while_another_machine_uses_a_home_this_one_has_its_own_in_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with (home / "vllm-annotate.machine").open("w") as other:  # as over NFS: the lock and the name of another machine
        fcntl.flock(other, fcntl.LOCK_SH)
        other.write("node-7 1b4e28ba-2fa1-11d2-883f-0016d3cca427")
        other.flush()
        with ExitStack() as held:
            found = home_for(home, held)
            assert found.path == home / "machines" / os.uname().nodename
            assert found.path.is_dir()
            assert f"PREFECT_HOME={found.path} prefect server start" in found.note
    with ExitStack() as held:
        assert home_for(home, held).path == home, "it has left"


def test_an_unwritable_home_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for unwritable in (tmp_path / "file", tmp_path / "file" / "home", Path("/proc/nowhere")):
        with ExitStack() as held:
            found = home_for(unwritable, held)
            assert found.is_temporary
            assert list(found.path.iterdir()) == []
            assert f"cannot write to Prefect's home {unwritable}: " in found.note
            assert "set PREFECT_HOME to another folder" in found.note
        assert not found.path.exists()


def test_a_home_without_room_for_a_database_is_replaced(tmp_path: Path) -> None:
    program = (
        "from contextlib import ExitStack; from pathlib import Path; from flows.support.prefect_home import home_for\n"
        f"with ExitStack() as held: print(home_for(Path({str(tmp_path)!r}), held).note)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )  # fmt: skip
    assert f"cannot write to Prefect's home {tmp_path}: File too large" in done.stdout


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/.prefect", "nfs4"),
        ("/homes/me", "ext4"),
        ("/mnt/my disk/x", "cifs"),
        ("/home", "nfs4"),
        ("/", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_deepest_mount(path: str, kind: str) -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nnas:/home /home nfs4 rw 0 0\n//nas/a /mnt/my\\040disk cifs rw 0 0\n"
    assert file_system_of(path, mounts) == kind
