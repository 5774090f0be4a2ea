"""Whose turn it is to write an output in an object store, where there are no file locks."""

import errno
import json
import platform
import threading
import time
from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem

from vllm_annotate.errors import UsageError
from vllm_annotate.storage.locations import reaching, version_of

RENEW_SECONDS = 15.0
LEASE_SECONDS = 60.0  # a holder that has not renewed it for so long is gone
LOOK_SECONDS = 3.0


class Lease:
    """An object that its holder writes anew again and again; a new one takes it when it stays as it is.

    No clocks are compared. Where the store writes conditionally (S3 does), of two takers one wins for certain.
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
        """`stopped` is set to end the wait for another holder."""
        self._fs = fs
        self._path = path
        self._url = url
        self._token = token  # of the folder on this machine, which is locked: who else has it is gone
        self._say = say
        self._stopped = stopped or threading.Event()
        self._version = ""
        self._held = self._lost = False
        self._writing = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, daemon=True, name="lease")

    def take(self) -> None:
        """Waits for a holder that may be gone. Raises UsageError while there is one, OSError where the store is."""
        with reaching(self._url):
            while not (self._create() or self._take_over()):
                pass  # it was released while it was looked at
        self._held = True
        self._check_lost()
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether it was taken, and not lost since, as far as is known."""
        return self._held and not self._lost

    def check(self) -> None:
        """Renews it now. Raises UsageError where another run has taken over, OSError where nobody can tell."""
        with reaching(self._url):
            self._write()
        self._check_lost()

    def _check_lost(self) -> None:
        if self._lost:
            raise UsageError(
                f"another run has taken over {self._url}, for this one was not heard of for {LEASE_SECONDS:.0f} s: "
                "its answers are kept on this machine; run it again after the other one"
            )

    def release(self) -> None:
        """Lets the next one in. Raises OSError."""
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
        self._version = self._look()
        return True

    def _take_over(self) -> bool:
        """Takes the place of a holder that is gone; False where there is none any more."""
        try:
            held, holder = self._look(), self._holder()
            if holder.get("token") != self._token:
                self._watch(held, f"{holder.get('host', 'another machine')} since {holder.get('since', 'some time')}")
        except FileNotFoundError:
            return False
        self._version = held
        self._write()
        return True

    def _watch(self, held: str, holder: str) -> None:
        """Waits until a holder should have written again. Raises UsageError where it has."""
        self._say(f"{self._url} is held by a run on {holder}: waiting {LEASE_SECONDS:.0f} s to see if it lives")
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            if self._stopped.wait(LOOK_SECONDS):
                raise UsageError(f"stopped while it waited for {self._url}")
            if self._look() != held:
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
                continue  # the network may come back before anybody takes it

    def _write(self) -> None:
        """Writes it anew, unless somebody else has."""
        with self._writing:
            if not self._lost:
                self._write_alone()

    def _write_alone(self) -> None:
        # Other stores do not know the condition; there the version is only looked at.
        condition: dict[str, Any] = {"IfMatch": self._version} if "s3" in self._fs.protocol else {}
        try:
            if not condition and self._look() != self._version:
                self._lost = True
                return
            written = self._fs.pipe_file(self._path, self._content(), **condition)
            self._version = version_of(written) if isinstance(written, dict) and "ETag" in written else self._look()
        except FileNotFoundError:
            self._lost = True
        except OSError as error:
            if error.errno != errno.EINVAL:  # "precondition failed"
                raise
            # Also where the first try of the driver had come through, and its second met it.
            self._lost = self._holder().get("token") != self._token
            if not self._lost:
                self._version = self._look()

    def _holder(self) -> dict[str, Any]:
        try:
            holder = json.loads(self._fs.cat_file(self._path))
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _look(self) -> str:
        return version_of(self._fs.info(self._path))

    def _content(self) -> bytes:
        at = {"since": time.strftime("%F %T %z"), "beat": time.monotonic_ns()}
        return json.dumps({"token": self._token, "host": platform.node()} | at).encode()
