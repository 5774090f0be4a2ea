"""Standard streams that are closed, that nobody reads any more, or whose disk is full: none of that may end a run."""

import os
import sys
from io import TextIOWrapper


class Output(TextIOWrapper):
    """Standard output or error. After the first error it writes to nowhere, and `fault` is that error."""

    fault: OSError | None = None

    def __init__(self, descriptor: int, encoding: str) -> None:
        buffer = open(descriptor, "wb", closefd=False)  # noqa: SIM115
        super().__init__(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Writes the text as long as that is possible; returns its length."""
        try:
            return super().write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered as long as that is possible."""
        try:
            super().flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        self.fault = self.fault or error
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - also for what is still buffered
            os.dup2(nothing.fileno(), self.fileno())


def set_up_streams() -> Output:
    """Makes the standard streams safe to use; returns standard output.

    A closed one is opened to nowhere: the next file of the run would get its number, and with it all messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    encodings = [getattr(stream, "encoding", "utf-8") for stream in (sys.stdout, sys.stderr)]  # None if closed
    sys.stdout, sys.stderr = output, _ = Output(1, encodings[0]), Output(2, encodings[1])
    return output
