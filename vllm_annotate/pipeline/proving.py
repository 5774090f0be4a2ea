"""The proof within a run: before the first image, when an endpoint comes back, and canaries in between."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from vllm_annotate.inference.client import Inference
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.pool import Pool
from vllm_annotate.pipeline.annotator import Annotator
from vllm_annotate.proof.canaries import CanaryWatch
from vllm_annotate.proof.finding import Finding
from vllm_annotate.proof.prove import Prover, identify
from vllm_annotate.recipe.families import FAMILIES, names_family
from vllm_annotate.recipe.guard import read_recipe
from vllm_annotate.recipe.settings import Recipe
from vllm_annotate.storage.workspace import Workspace

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Proving:
    """What a run knows of its endpoints; decides how images are sent, and which endpoints get any."""

    def __init__(self, prover: Prover, inference: Inference, annotator: Annotator, canary_every: int) -> None:
        self._prover, self._pool, self._annotator = prover, inference.pool, annotator
        self._canaries = CanaryWatch(prover, inference.pool, canary_every)
        self._inference = inference
        self._logger: Logger = logging.getLogger(__name__)
        self._said: set[str] = set()

    @property
    def findings(self) -> dict[str, Finding]:
        """The findings, by URL; empty before the proof."""
        return self._prover.findings

    async def prove_all(self, logger: Logger) -> None:
        """Proves the endpoints that are up; the others when they come back. Raises ServerRefused."""
        self._logger, self._pool.admit, self._inference.on_answer = logger, self._admit, self._canaries.answered
        logger.info("Asking the servers about drawn scenes: what they see, and where their boxes point")
        try:
            async with asyncio.TaskGroup() as group:
                for endpoint in self._pool.endpoints:
                    if endpoint.up.is_set():
                        group.create_task(self._prove_first(endpoint))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def close(self) -> None:
        """Ends canaries under way."""
        await self._canaries.close()

    async def _prove_first(self, endpoint: Endpoint) -> None:
        if not await self._admit(endpoint):
            self._pool.take_down(endpoint, "it does not answer")

    async def _admit(self, endpoint: Endpoint) -> bool:
        """Proves an endpoint; returns whether it may have images."""
        finding = await self._prover.prove(endpoint)
        if finding is None:
            return False
        self._annotator.preparation.as_they_are = self._prover.as_they_are
        self._canaries.proven(endpoint)
        self._tell(endpoint, finding)
        return True

    def _tell(self, endpoint: Endpoint, finding: Finding) -> None:
        text = f"{endpoint.url}: {'; '.join(finding.sentences())}"
        if text in self._said:
            return
        self._said.add(text)
        self._logger.log(logging.INFO if finding.is_proven else logging.WARNING, "%s", text)


async def with_family(
    recipe: Recipe, model: str, workspace: Workspace, pool: Pool, say: Callable[[str], None]
) -> Recipe:
    """The recipe with a family that is certain: its own, that of the model's name, of the output, or of its boxes.

    Raises UsageError if nothing tells it.
    """
    if names_family(recipe.family, model):
        return recipe
    known = (read_recipe(workspace) or {}).get("settings", {})
    if known.get("model") == model and known.get("family") in FAMILIES:
        return recipe.model_copy(update={"family": known["family"]})
    family = await identify(pool.endpoints, recipe, model, say)
    return recipe.model_copy(update={"family": family.name})
