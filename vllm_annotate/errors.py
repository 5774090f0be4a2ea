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


class AnnotateError(Exception):
    """Base of every error this project raises on purpose."""


class UsageError(AnnotateError):
    """A bad parameter, input file or workspace; the message says value, rule and remedy."""


class ImageFailure(AnnotateError):
    """One image that gets no answer in this run.

    `kind` is one of missing, outside_root, unreadable, too_large (the file), rejected, timeout, server, truncated
    (the request); server also stands for a chunk whose server went away, unasked for one that was stopped otherwise.
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
