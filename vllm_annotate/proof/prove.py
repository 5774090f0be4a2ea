"""Proves endpoints: what each sees, and where its boxes point."""

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial

from vllm_annotate.errors import ImageFailure, ServerRefused
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.responses import Completion, Trouble
from vllm_annotate.inference.tries import Tries
from vllm_annotate.proof.finding import Finding, find
from vllm_annotate.proof.pointing import GOOD_FIT, Questions, point
from vllm_annotate.proof.sight import Sight, look
from vllm_annotate.recipe.families import FAMILIES, Family
from vllm_annotate.recipe.settings import Recipe

# One for each space, for a model whose name tells nothing. The first of those that fit about equally well is taken.
CANDIDATES = ("thousandths", "qwen2.5-vl", "gemini", "kimi-vl")
ABOUT = 0.05  # IoU
UNSEEN = Sight(verdict="uncounted")


async def ask(endpoint: Endpoint, body: bytes) -> Completion | str:
    """Sends a request that counts in no figure; returns its completion, or why there is none."""
    tries = Tries()
    while True:
        try:
            answer = await endpoint.complete(body, tries.attempts + 1, counts=False)
        except ImageFailure as failure:
            return str(failure)
        if isinstance(answer, Completion):
            return answer
        tries.count(Trouble(answer.kind, answer.message), up=True)
        if tries.are_over or (answer.cause == "lost" and not await endpoint.is_healthy()):
            return answer.message
        await asyncio.sleep(tries.pause_seconds())


class Prover:
    """Proves the endpoints of a run, and remembers what they showed."""

    def __init__(self, recipe: Recipe, family: Family, model: str, rng: random.Random | None = None) -> None:
        self.findings: dict[str, Finding] = {}  # the last by URL
        self.rng = rng or random.Random()
        self.questions = Questions(recipe, family, model, self.rng)
        self._recipe, self._family, self._model = recipe, family, model
        self._steady: set[str] = set()  # endpoints whose boxes were right at some time

    @property
    def as_they_are(self) -> bool:
        """Whether images within the budget may be sent unchanged to every endpoint that was proven."""
        return bool(self.findings) and all(finding.as_they_are for finding in self.findings.values())

    async def prove(self, endpoint: Endpoint) -> Finding | None:
        """What the endpoint sees, and where it points; None if it went away.

        Raises ServerRefused if its boxes would be wrong.
        """
        asking, family = partial(ask, endpoint), self._family
        sees = await look(asking, self._model, family, self.questions.budget, self.rng)
        points = await point(self.questions, asking, sees)
        if (sees.why or points.why) and not await endpoint.is_healthy():
            return None
        finding, before = find(self._recipe, family, sees, points), self.findings.get(endpoint.url)
        if before is not None:
            finding.canaries = before.canaries
        if points.steady:
            self._steady.add(endpoint.url)
        elif endpoint.url in self._steady and points.verdict == "unproven" and not finding.refused:
            finding.refused = f"its boxes were right, and are not any more: {finding.sentences()[1]}"
        self.findings[endpoint.url] = finding
        if finding.refused:
            raise ServerRefused(f"{endpoint.url}: {finding.refused}")
        return finding


async def identify(
    endpoints: Sequence[Endpoint], recipe: Recipe, model: str, say: Callable[[str], None]
) -> Family | None:
    """The family whose space fits a model's boxes for drawn scenes best; None if none fits."""
    fits: dict[str, float] = {}
    for endpoint in endpoints:
        if not endpoint.up.is_set():
            continue
        for name in CANDIDATES:
            questions = Questions(recipe, FAMILIES[name], model, random.Random())
            pointing = await point(questions, partial(ask, endpoint), UNSEEN)
            fits[name] = min(fits.get(name, 1.0), pointing.mean_iou)
    best = max(fits.values(), default=0.0)
    if best < GOOD_FIT:
        return None
    name = next(name for name, fit in fits.items() if fit >= best - ABOUT)
    say(f"the model's name, {model!r}, does not tell its family; its boxes for drawn scenes fit {name} ({best:.2f})")
    return FAMILIES[name]
