"""Runs vLLM on CPU with the demo's tiny model, for benchmarks."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from blocks import VLLMServer
from demo.processes import TINY_GROUNDER_SERVER
from stand_in.ports import free_port
from vllm_annotate.serving.keeper import kept_servers
from vllm_annotate.serving.preflight import preflight
from vllm_annotate.storage.yaml_fields import read_fields

# No cache may favour the program that comes second.
WITHOUT_CACHES = ("--no-enable-prefix-caching", "--mm-processor-cache-gb=0")


class Running(NamedTuple):
    """A running server."""

    url: str
    model: str
    executable: str


def limits(min_visual_tokens: int, max_visual_tokens: int) -> str:
    """The option for other limits than the model's own on the images that its processor sees."""
    pixels = {"min_pixels": min_visual_tokens * 28**2, "max_pixels": max_visual_tokens * 28**2}
    return f"--mm-processor-kwargs={json.dumps(pixels)}"


@asynccontextmanager
async def tiny_grounder(folder: Path, *arguments: str) -> AsyncIterator[Running]:
    """Runs the server, without caches of images and prompts; its log is in the folder."""
    server = VLLMServer(**read_fields(TINY_GROUNDER_SERVER, "server", VLLMServer))
    assert server.start is not None  # noqa: S101 - for the type checker
    every = [*server.start.extra_arguments, *WITHOUT_CACHES, *arguments]
    start = server.start.model_copy(update={"extra_arguments": every, "port": free_port()})
    server = server.model_copy(update={"start": start})
    found = preflight(start, server.model, "")
    found.check()
    os.environ |= start.variables
    async with kept_servers(found.replicas, folder, print):
        yield Running(server.urls()[0], found.model_name, start.executable)
