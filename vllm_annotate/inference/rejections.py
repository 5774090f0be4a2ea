"""Finds out early that a server rejects every request, whatever the image."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_annotate.errors import ImageFailure, ServerRefused
from vllm_annotate.inference.responses import Completion, Trouble
from vllm_annotate.inference.tries import Tries

FIRST_FEW = 10  # within the error budget of any chunk

NO_SYSTEM_ROLE = (
    "the model's chat template has no system role; move the instructions into user_prompt of the recipe and set "
    "system_prompt to an empty text"
)
TOO_LONG = "start vLLM with a larger --max-model-len, or lower max_visual_tokens or max_tokens of the recipe"
REMEDIES = {  # words in a server's message, in lower case → what to do
    "system role": NO_SYSTEM_ROLE,
    "roles must alternate": NO_SYSTEM_ROLE,
    "at most 0 image": "start vLLM with --limit-mm-per-prompt '{\"image\": 1}'",
    "not a multimodal model": "serve a model that takes images",
    "does not support image": "serve a model that takes images",
    "context length": TOO_LONG,
    "maximum model length": TOO_LONG,
    "response_format": "set structured_output of the recipe to false",
    "json_schema": "set structured_output of the recipe to false",
    "repetition_detection": "set repetition_detection of the recipe to false",
    "http 413": "raise the gateway's limit of a request's body (client_max_body_size of nginx), or lower "
    "max_visual_tokens of the recipe",
    "redirects to": "set --api-base to the server's own address",
    "http 401": "check the API key",
    "stream of events": "turn off streaming in the gateway",
    "content filter": "turn off the content filter of the server or gateway",
    "called a tool": "start vLLM without --enable-auto-tool-choice",
    "http 402": "check the account of the API key",
    "http 407": "check the proxy",
    "http 403": "check the API key and what the gateway allows",
}
OTHERWISE = "see the message and the server's log"
ONLY_REASONING = (
    "every answer has reasoning but no text: the server's --reasoning-parser does not fit the model; start vLLM with "
    "another or without, or raise max_tokens of the recipe if the model thinks"
)


class Rejections:
    """Counts rejected requests until the first answer, and those in trouble since the last."""

    def __init__(self) -> None:
        self._rejected = self._without_text = 0
        self._troubled: defaultdict[str, set[Tries]] = defaultdict(set)  # by kind
        self._under_way: dict[int, None] = {}  # requests, oldest first
        self._is_answering = False
        self._refusal: ServerRefused | None = None

    @contextmanager
    def under_way(self, tries: Tries) -> Iterator[None]:
        """While a request is sent and not answered."""
        self._under_way[id(tries)] = None
        try:
            yield
        finally:
            tries.was_oldest = next(iter(self._under_way)) == id(tries)
            del self._under_way[id(tries)]

    def answered(self, completion: Completion) -> None:
        """Counts a completion."""
        self._troubled.clear()
        if not completion.only_reasoning:
            self._is_answering = True
        elif not self._is_answering:
            self._without_text += 1
            if self._without_text >= FIRST_FEW:
                self._refusal = ServerRefused(ONLY_REASONING)

    def add(self, failure: ImageFailure, tries: Tries) -> None:
        """Counts an image that the server rejected. Raises ServerRefused if it is one of the first, and all were."""
        if self._is_answering or failure.kind != "rejected":
            return
        self._rejected += 1
        # Requests that were sent before and are still under way may have been accepted: rejecting is fast.
        if self._rejected >= FIRST_FEW and tries.was_oldest:
            self._refusal = ServerRefused(
                f"the server rejected the first {self._rejected} images, last with {failure.message}: "
                f"{remedy_for(failure.message)}"
            )
        self.check()

    def in_trouble(self, tries: Tries, trouble: Trouble) -> bool:
        """Counts a request in trouble; returns whether others were in the same kind of it since the last answer."""
        self._troubled[trouble.kind].add(tries)
        return len(self._troubled[trouble.kind]) > 1

    def check(self) -> None:
        """Raises ServerRefused if the first requests were all rejected."""
        if self._refusal is not None and not self._is_answering:
            raise self._refusal


def remedy_for(message: str) -> str:
    """What to do about a server's message."""
    said = message.lower()
    return next((remedy for words, remedy in REMEDIES.items() if words in said), OTHERWISE)
