"""A lease on an output in an object store, which has no file locks."""

import errno
import json
import platform
import threading
import time
from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.json_text import json_object
from vllm_annotate.storage.locations import reaching, version_of
from vllm_annotate.storage.lock import local_time, one_line

RENEW_SECONDS = 15.0
LEASE_SECONDS = 60.0  # without a renewal for this long, the holder counts as gone
LOOK_SECONDS = 3.0


class Lease:
    """An object that its holder rewrites regularly. Another run takes it over once it stays unchanged.

    No clocks are compared. If the store supports conditional writes (S3 does), exactly one of two contenders wins.
    In others the content shows what was rewritten: some say of an object only its size.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        url: str,
        token: str,
        say: Callable[[str], None],
        stopped: threading.Event | None = None,
    ) -> None:
        """Setting `stopped` ends the wait for another holder."""
        self._fs = fs
        self._path = path
        self._url = url
        self._token = token  # of the local folder, which is locked: an earlier holder of the same token is gone
        self._say = say
        self._stopped = stopped or threading.Event()
        self._has_conditions = "s3" in fs.protocol
        self._version = ""
        self._held = self._lost = False
        self._writing = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, daemon=True, name="lease")

    def take(self) -> None:
        """Acquires the lease; waits to see whether another holder is gone.

        Raises UsageError if it is not, OSError if the store is at fault.
        """
        with reaching(self._url):
            while not (self._create() or self._take_over()):
                pass  # released between the two
        self._held = True
        self._check_lost()
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether the lease was acquired and, as far as known, not lost since."""
        return self._held and not self._lost

    def check(self) -> None:
        """Renews the lease now. Raises UsageError if another run took it over, OSError if the store is at fault."""
        with reaching(self._url):
            self._write()
        self._check_lost()

    def _check_lost(self) -> None:
        if self._lost:
            raise UsageError(
                f"another run took over {self._url}, because this one did not renew its lease for "
                f"{LEASE_SECONDS:.0f} s: its answers are saved on this machine; run it again after the other one"
            )

    def release(self) -> None:
        """Releases the lease. Raises OSError."""
        self._released.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.held:
            with reaching(self._url):
                if self._holder().get("token") == self._token:
                    self._fs.rm_file(self._path)

    def _create(self) -> bool:
        try:
            self._fs.pipe_file(self._path, self._content(), mode="create")
        except FileExistsError:
            return False
        self._version = self._current_version()
        return True

    def _take_over(self) -> bool:
        """Replaces a holder that is gone; returns False if the lease was released meanwhile."""
        try:
            held, holder = self._current_version(), self._holder()
            if holder.get("token") != self._token:
                host, since = holder.get("host", "another machine"), holder.get("since", "an unknown time")
                self._wait_for_renewal(held, f"{one_line(host)} since {one_line(since)}")
        except FileNotFoundError:
            return False
        self._version = held
        self._write()
        return True

    def _wait_for_renewal(self, held: str, holder: str) -> None:
        """Waits until the holder should have renewed the lease. Raises UsageError if it did."""
        self._say(
            f"{self._url} is held by a run on {holder}: waiting {LEASE_SECONDS:.0f} s to see if it is still running"
        )
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            if self._stopped.wait(LOOK_SECONDS):
                raise UsageError(f"stopped while waiting for {self._url}")
            if self._current_version() != held:
                raise UsageError(
                    f"output {self._url} is being written by another run ({holder}): wait for it, stop it, or choose "
                    "another --output"
                )

    def _renew_until_released(self) -> None:
        while not self._released.wait(RENEW_SECONDS) and not self._lost:
            try:
                with reaching(self._url):
                    self._write()
            except OSError:
                continue  # the network may come back before another run takes the lease

    def _write(self) -> None:
        """Rewrites the object, unless another run did."""
        with self._writing:
            if not self._lost:
                self._write_alone()

    def _write_alone(self) -> None:
        condition: dict[str, Any] = {"IfMatch": self._version} if self._has_conditions else {}
        try:
            if not condition and not self._is_held_still():
                self._lost = True
                return
            written = self._fs.pipe_file(self._path, self._content(), **condition)
            has_version = isinstance(written, dict) and "ETag" in written
            self._version = version_of(written) if has_version else self._current_version()
        except FileNotFoundError:
            self._lost = True
        except OSError as error:
            if error.errno != errno.EINVAL:  # "precondition failed"
                raise
            # Also raised if the driver's first attempt succeeded and its retry found the result.
            self._lost = not self._is_held_still()
            if not self._lost:
                self._version = self._current_version()

    def _is_held_still(self) -> bool:
        """Whether nobody else has written it since, even if this run never heard of its own last write."""
        return self._current_version() == self._version or self._holder().get("token") == self._token

    def _holder(self) -> dict[str, Any]:
        return json_object(self._fs.cat_file(self._path)) or {}

    def _current_version(self) -> str:
        if self._has_conditions:
            return version_of(self._fs.info(self._path))
        return str(self._fs.cat_file(self._path))

    def _content(self) -> bytes:
        at = {"since": local_time(), "beat": time.monotonic_ns()}
        return json.dumps({"token": self._token, "host": platform.node()} | at).encode()
