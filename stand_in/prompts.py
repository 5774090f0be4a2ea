"""Reads the requests, and the images that they name."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

import orjson

from stand_in.responses import Refused
from vllm_annotate.proof.scenes import MARKS

# In the texts of drawings with which a run tests its servers, in English and in Chinese: no images of the input.
PROOF = re.compile("|".join(MARKS.values()))
TOKEN_CHARACTERS = 4  # of text


@dataclass(frozen=True)
class Prompt:
    """What a request asks."""

    system: str
    text: str  # of the user's message
    url: str  # of the image; empty without one
    temperature: float
    max_tokens: int
    seed: int | None = None

    @property
    def is_proof(self) -> bool:
        """Whether it belongs to a test of the server, not to a row."""
        return PROOF.search(self.text) is not None or PROOF.search(self.system) is not None

    @property
    def is_chinese(self) -> bool:
        """Whether the answer is to be in Chinese."""
        return any("一" <= letter <= "鿿" for letter in self.system or self.text)

    @property
    def text_tokens(self) -> int:
        """The tokens of all text."""
        return (len(self.system) + len(self.text)) // TOKEN_CHARACTERS


def read_prompt(raw: bytes, model: str, max_model_len: int) -> Prompt:
    """The prompt of a request. Raises Refused."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"JSON decode error: {error}") from None
    if body.get("model") != model:
        raise Refused(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    response_format = body.get("response_format")
    if response_format is not None and not isinstance(response_format.get("json_schema", {}).get("schema"), dict):
        raise Refused(400, "response_format json_schema needs a schema")
    text, url = _user_content(body)
    system = "".join(str(message["content"]) for message in body["messages"] if message["role"] == "system")
    most = body.get("max_completion_tokens") or body.get("max_tokens") or max_model_len
    return Prompt(system, text, url, float(body.get("temperature", 1)), int(most), body.get("seed"))


def _user_content(body: dict[str, Any]) -> tuple[str, str]:
    """The texts and the image URL of the user's message."""
    parts = body["messages"][-1]["content"]
    if isinstance(parts, str):
        return parts, ""
    texts = [part["text"] for part in parts if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if len(urls) > 1:
        raise Refused(400, f"At most 1 image(s) may be provided in one prompt, got {len(urls)}.")
    return "\n".join(texts), "".join(urls)


def image_bytes(url: str) -> bytes:
    """The image of a data URL. Raises Refused."""
    if not url.startswith("data:"):
        raise Refused(400, f"unsupported image URL {url[:40]}")
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise Refused(400, f"Failed to load image: {error}") from None
