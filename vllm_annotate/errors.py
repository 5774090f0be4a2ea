"""Exceptions, by what is at fault.

AnnotateError
├── UsageError            a parameter, the input or the workspace; nothing is written, the message has the remedy
│   └── EmptyInput        an input file that is whole and has no images; among several it is finished
├── ImageFailure          one image has no answer; recorded by kind, the run continues
├── UnparsableAnswer      the model's text contains no annotation; the text is saved
├── ServerFault           the server, never an image
│   ├── ServerUnavailable down, overloaded or unreachable; worth a retry
│   └── ServerRefused     wrong key or wrong model; not worth a retry
├── MachineFault          this machine or its image root, not an image; stops the run, the message has the remedy
└── ErrorBudgetExceeded   too many of the last images failed
"""

from typing import Literal

from vllm_annotate.printable import printable

FailureKind = Literal[
    "missing", "unreadable", "outside_root", "too_large", "rejected", "truncated", "timeout", "server", "unasked"
]
FAILURE_KINDS = {  # what a kind means, and what to do about it
    "missing": ("no such file", "restore the file, or remove the row"),
    "unreadable": (
        "not a complete image (JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF, JPEG 2000, PPM, ICO, TGA), an aspect ratio over "
        "200, or an I/O error while reading the file",
        "repair, crop or remove the file; after an I/O error, run again",
    ),
    "too_large": ("over 89 million pixels or 256 MiB, or more than the memory allows", "shrink the file"),
    "outside_root": (
        "the path, or a link on it, leads out of `--image-root`",
        "move the file in, or widen the root",
    ),
    "rejected": (
        "the server refused this request (HTTP 4xx); the message is the server's",
        "often a caption longer than the context",
    ),
    "truncated": (
        "every attempt reached `max_tokens` or ran in a loop, and none contained a complete object",
        "raise `max_tokens`; that is another recipe, so use another `--output`",
    ),
    "timeout": ("four attempts failed on a healthy server, the last by taking too long", "run again"),
    "server": ("four attempts failed on a healthy server; or the chunk's server went away", "run again"),
    "unasked": (
        "the chunk was stopped before the image's turn, for the reason in the message",
        "see the reason, run again",
    ),
}


class AnnotateError(Exception):
    """Base of all exceptions of this package. Messages are made printable, as they often repeat texts of others."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(AnnotateError):
    """A bad parameter, input file or workspace. The message gives the value, the rule and the remedy."""


class EmptyInput(UsageError):
    """An input file is whole, and has no images."""


class ImageFailure(AnnotateError):
    """One image that gets no answer in this run.

    `kind` is one of FAILURE_KINDS.
    """

    def __init__(self, kind: str, message: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = str(self)
        self.attempts = attempts


class UnparsableAnswer(AnnotateError):
    """The model's text contains no annotation."""


class InputFault(UsageError):
    """An input file is another one than when it was planned. Other files of the same run are not concerned."""


class ServerFault(AnnotateError):
    """The server is at fault, not the image."""


class ServerUnavailable(ServerFault):
    """No endpoint answers or accepts requests. Waiting or a restart may help."""


class ServerRefused(ServerFault):
    """The server refuses every request: wrong key or wrong model."""


class MachineFault(AnnotateError, OSError):
    """The machine is short of memory or open files, or the image root is gone: every image would fail."""


class ErrorBudgetExceeded(AnnotateError):
    """More images of a chunk failed than the run allows, probably for a common cause."""
