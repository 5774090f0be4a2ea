"""What can go wrong, by whose fault it is.

AnnotateError
├── UsageError            a parameter, the input or the workspace: nothing is written, the message holds the remedy
├── ImageFailure          this one image has no answer; recorded by kind, the run goes on
├── UnparsableAnswer      the model's text holds no annotation; the text is kept
├── ServerFault           the server's fault, never an image's
│   ├── ServerUnavailable down, overloaded or unreachable: may heal
│   └── ServerRefused     wrong key, wrong model: does not heal by waiting
└── ErrorBudgetExceeded   too many images of one chunk failed
"""

from typing import Literal

FailureKind = Literal[
    "missing", "unreadable", "outside_root", "too_large", "rejected", "truncated", "timeout", "server", "unasked"
]
FAILURE_KINDS = {  # what a kind means, and what to do about it
    "missing": ("no such file", "restore the file, or remove the row"),
    "unreadable": (
        "not a complete image (JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF, JPEG 2000, PPM, ICO, TGA), or an aspect ratio "
        "over 200",
        "repair, crop or remove the file",
    ),
    "too_large": ("over 89 million pixels or 256 MiB", "shrink the file"),
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
    """Base of every error this project raises on purpose."""


class UsageError(AnnotateError):
    """A bad parameter, input file or workspace; the message says value, rule and remedy."""


class ImageFailure(AnnotateError):
    """One image that gets no answer in this run.

    `kind` is one of FAILURE_KINDS.
    """

    def __init__(self, kind: str, message: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.attempts = attempts


class UnparsableAnswer(AnnotateError):
    """The model's text holds no annotation."""


class ServerFault(AnnotateError):
    """The server is at fault; no image is blamed for it."""


class ServerUnavailable(ServerFault):
    """No endpoint answers, or none takes requests; waiting or a restart may help."""


class ServerRefused(ServerFault):
    """The server answers and says no to everything: wrong key or wrong model."""


class ErrorBudgetExceeded(AnnotateError):
    """More images of a chunk failed than the run allows: the cause is likely common to all."""
