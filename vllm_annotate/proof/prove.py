"""Proves endpoints: what each sees, and where its boxes point."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from vllm_annotate.errors import ImageFailure, ServerRefused, UsageError
from vllm_annotate.inference.endpoint import Endpoint
from vllm_annotate.inference.responses import Completion
from vllm_annotate.inference.tries import Tries
from vllm_annotate.proof.finding import Finding, find
from vllm_annotate.proof.pointing import GOOD_FIT, Pointing, Questions, point
from vllm_annotate.proof.sight import Sight, look
from vllm_annotate.recipe.families import FAMILIES, Family, not_named
from vllm_annotate.recipe.settings import Recipe

# One for each space, for a model whose name tells nothing. The first of those that fit about equally well is taken.
CANDIDATES = ("thousandths", "qwen2.5-vl", "gemini", "kimi-vl")
ABOUT = 0.05  # IoU
PATIENCE_SECONDS = 60.0
UNSEEN = Sight(verdict="uncounted")


class Asker:
    """Asks an endpoint about drawings: as many at once as its limit allows, and in none of its figures."""

    def __init__(self, endpoint: Endpoint, patience_seconds: float) -> None:
        """After `patience_seconds` no request is tried again."""
        self._endpoint, self._deadline = endpoint, time.monotonic() + patience_seconds
        self._room = asyncio.Semaphore(endpoint.limit)

    @property
    def is_late(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() > self._deadline

    async def __call__(self, body: bytes) -> Completion | str:
        """Returns the completion, or why there is none."""
        tries = Tries()
        while True:
            try:
                async with self._room:
                    answer = await self._endpoint.complete(body, tries.attempts + 1, counts=False)
            except ImageFailure as failure:
                return str(failure)
            if isinstance(answer, Completion):
                return answer
            if answer.cause == "lost" and not await self._endpoint.is_healthy():
                return answer.message
            tries.count(answer, up=True)
            if tries.are_over or self.is_late:
                return answer.message
            await asyncio.sleep(tries.pause_seconds())


class Prover:
    """Proves the endpoints of a run, and remembers what they showed."""

    def __init__(
        self,
        recipe: Recipe,
        family: Family,
        model: str,
        rng: random.Random | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`patience_seconds`: see `Asker`."""
        self.findings: dict[str, Finding] = {}  # the last by URL
        self.rng = rng or random.Random()
        self.questions = Questions(recipe, family, model, self.rng)
        self._recipe, self._family, self._model = recipe, family, model
        self._patience_seconds = patience_seconds
        self._steady: set[str] = set()  # endpoints whose boxes were right at some time

    @property
    def as_they_are(self) -> bool:
        """Whether images within the budget may be sent unchanged to every endpoint that gets any."""
        used = [finding for finding in self.findings.values() if not finding.refused]
        return bool(used) and all(finding.as_they_are for finding in used)

    def asker(self, endpoint: Endpoint) -> Asker:
        """Asks the endpoint about drawings."""
        return Asker(endpoint, self._patience_seconds)

    async def prove(self, endpoint: Endpoint) -> Finding | None:
        """What the endpoint sees, and where it points; None if it does not answer.

        Raises ServerRefused if its boxes would be wrong.
        """
        asking, family = self.asker(endpoint), self._family
        sees = await look(asking, self._model, family, self.questions.budget, self.rng)
        if sees.why and asking.is_late:
            points = Pointing(verdict="unproven", why=sees.why)
        else:
            points = await point(self.questions, asking, sees)
        unanswered = bool(points.why) and endpoint.url in self._steady
        if unanswered or ((sees.why or points.why) and not await endpoint.is_healthy()):
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


async def identify(endpoints: Sequence[Endpoint], recipe: Recipe, model: str, say: Callable[[str], None]) -> Family:
    """The family whose space fits a model's boxes for drawn scenes best. Raises UsageError if none fits."""
    fits, whys = dict.fromkeys(CANDIDATES, 1.0), set[str]()
    for endpoint in endpoints:
        if not endpoint.up.is_set():
            continue
        for name in CANDIDATES:
            questions = Questions(recipe, FAMILIES[name], model, random.Random())
            pointing = await point(questions, Asker(endpoint, PATIENCE_SECONDS), UNSEEN)
            fits[name] = min(fits[name], pointing.mean_iou)
            whys |= {pointing.why} - {""}
    best = max(fits.values())
    if best < GOOD_FIT:
        because = f" ({'; '.join(sorted(whys))})" if whys else ""
        raise UsageError(f"{not_named(model)}; its boxes for drawn scenes fit none of them{because}")
    name = next(name for name, fit in fits.items() if fit >= best - ABOUT)
    say(f"the model's name, {model!r}, does not tell its family; its boxes for drawn scenes fit {name} ({best:.2f})")
    return FAMILIES[name]
