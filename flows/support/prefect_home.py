"""Where a temporary Prefect server has its database: in your Prefect home, or in one of its own."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_annotate.storage.state_folder import this_machine

ROOM_BYTES = 1 << 20  # a new database is half as large
SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "beegfs", "gpfs", "ceph", "glusterfs", "fuse.gluster", "9p")


@dataclass(frozen=True)
class PrefectHome:
    """A folder for PREFECT_HOME; `note` says why it is not the user's, and is empty if it is."""

    path: Path
    note: str = ""
    is_temporary: bool = False


def home_for(wanted: Path, held: ExitStack) -> PrefectHome:
    """The user's home if it can serve; else one of this machine or of this process. `held` keeps what it needs.

    SQLite's write-ahead log is shared memory: two machines that write one database, such as the shards of a job with
    one home on NFS, corrupt it.
    """
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        check_room(wanted)
        if not is_shared(wanted) and held.enter_context(used_by_this_machine(wanted)):
            return PrefectHome(wanted)
        own = wanted / "machines" / os.uname().nodename
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return temporary_home(held, f"cannot write to Prefect's home {wanted}: {error.strerror or error}")
    note = f"other machines use Prefect's home {wanted} too, so runs of this machine are recorded in {own}"
    return PrefectHome(own, f"{note} (to see them: PREFECT_HOME={own} prefect server start)")


def temporary_home(held: ExitStack, reason: str) -> PrefectHome:
    """A home that is removed with the server. Raises OSError."""
    # The server may still write while its folder is removed.
    folder = tempfile.TemporaryDirectory(prefix="vllm-annotate-prefect-", ignore_cleanup_errors=True)
    note = f"{reason}; the answers do not need it. To keep Prefect's record of runs, set PREFECT_HOME to another folder"
    return PrefectHome(Path(held.enter_context(folder)), note, is_temporary=True)


def check_room(folder: Path) -> None:
    """Raises OSError if a small file cannot be written: a read-only, full or foreign folder, or a quota."""
    database = folder / "prefect.db"
    if database.exists():
        with database.open("rb+"):
            pass
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM_BYTES))


def is_shared(folder: Path) -> bool:
    """Whether a folder is on a network file system."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace")
    except OSError:
        return False
    return file_system_of(os.path.realpath(folder), mounts).startswith(SHARED_FILE_SYSTEMS)


def file_system_of(path: str, mounts: str) -> str:
    """The type of the file system that a path is on, by the lines of /proc/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ").rstrip("/")
        if len(point) >= len(best) and f"{path}/".startswith(f"{point}/"):
            best, kind = point, found
    return kind


@contextmanager
def used_by_this_machine(home: Path) -> Iterator[bool]:
    """Holds a home for this machine, whose processes share it. Yields whether no other does."""
    descriptor = os.open(home / "vllm-annotate.machine", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, this_machine().encode(), 0)
        except BlockingIOError:
            pass
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # a writer holds it for a moment only
        yield os.pread(descriptor, 500, 0) == this_machine().encode()
    finally:
        os.close(descriptor)
