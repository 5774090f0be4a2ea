"""Where a server points: its boxes for scenes that are known, read in the family's space and in the others."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from vllm_annotate.inference.responses import Completion
from vllm_annotate.proof.scenes import FAMILY_OF, SPACES, Kind, Scene, Space, draw_scene, space_of
from vllm_annotate.proof.sight import Ask, Sight
from vllm_annotate.recipe.families import Family
from vllm_annotate.recipe.request import RequestTemplate
from vllm_annotate.recipe.settings import Recipe

# One of the largest: what a server does to large images shows in no other.
SCENES = (Kind(1, 0.1), Kind(1, 0.3), Kind(1, 0.5), Kind(1, 1.0), Kind(2, 0.2), Kind(2, 0.5))
GOOD_FIT = 0.5  # mean IoU from which the family's space fits
OTHER_FIT = 0.35  # and another, in which the model was not asked
CLEARLY = 0.3  # by so much another space must fit better
STRAYS = 2  # scenes in another space that show that servers behind one address differ


class Pointing(BaseModel):
    """Where a server points.

    proven: its boxes fit in the family's space. other: they fit clearly better in another. unproven: they fit in none.
    """

    verdict: Literal["proven", "other", "unproven"]
    scenes: int = 0
    mean_iou: float = 0.0  # in the family's space
    steady: bool = False  # every scene of one shape fits: a later one that does not is news
    fits: dict[str, float] = {}  # mean IoU by space
    space: str = ""  # of `other`
    family: str = ""  # that has this space
    strays: int = 0  # scenes in another space than most
    why: str = ""  # of unproven, if there were no answers


class Questions:
    """A recipe's requests about drawn scenes."""

    def __init__(self, recipe: Recipe, family: Family, model: str, rng: random.Random) -> None:
        self.family = family
        self.budget = recipe.image_budget(family)
        self._template = RequestTemplate(recipe, family, model)
        self._language = recipe.language
        self._rng = rng

    async def about(self, kind: Kind, ask: Ask, sees: Sight) -> tuple[Scene, str] | str:
        """Asks about a fresh scene: returns the scene and the model's text, or why there is none."""
        servers, on_grid = sees.as_seen(self.budget), sees.verdict != "agrees"
        scene = draw_scene(self._rng, self.budget, servers, kind, self._language, on_grid=on_grid)
        answer = await ask(self._template.body(scene.caption, scene.drawing.url()))
        return (scene, answer.text) if isinstance(answer, Completion) else answer


async def point(questions: Questions, ask: Ask, sees: Sight) -> Pointing:
    """Asks about scenes; about twice as many if the answer to one is in another space."""
    found: list[tuple[Scene, str]] = []
    while True:
        answers = await asyncio.gather(*(questions.about(kind, ask, sees) for kind in SCENES))
        found += [answer for answer in answers if isinstance(answer, tuple)]
        if why := next((answer for answer in answers if isinstance(answer, str)), ""):
            return Pointing(verdict="unproven", why=why)
        pointing = judge(found, questions.family)
        if not pointing.strays or len(found) > len(SCENES):
            return pointing


def judge(answers: Sequence[tuple[Scene, str]], family: Family) -> Pointing:
    """Judges texts about scenes."""
    own = space_of(family)
    each = [scene.fits(text, family) for scene, text in answers]
    means = {space: sum(fits[space] for fits in each) / len(each) for space in SPACES}
    single = [fits[own] for (scene, _), fits in zip(answers, each, strict=True) if len(scene.drawing.shapes) == 1]
    strays = [space for fits in each if (space := _better(fits, own)) is not None]
    other, fit = _better(means, own), means[own] >= GOOD_FIT
    if fit and len(strays) >= STRAYS:
        other = strays[0]
    return Pointing(
        verdict="other" if other is not None else "proven" if fit else "unproven",
        scenes=len(answers),
        mean_iou=round(means[own], 4),
        steady=fit and min(single) >= GOOD_FIT,
        fits={str(space): round(mean, 4) for space, mean in means.items()},
        space=str(other or ""),
        family=FAMILY_OF.get(other, "") if other is not None else "",
        strays=len(strays) if fit else 0,
    )


def _better(fits: Mapping[Space, float], own: Space) -> Space | None:
    """The space that fits clearly better than the family's own, if any."""
    best = max(fits, key=lambda space: fits[space])
    return best if fits[best] >= max(OTHER_FIT, fits[own] + CLEARLY) else None
