"""What a server sees: the tokens that it counts for drawings of several sizes, against the grid of the family."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import orjson
from pydantic import BaseModel

from vllm_annotate.images.prepare import smart_resize
from vllm_annotate.inference.responses import Completion
from vllm_annotate.proof.drawings import BACKGROUNDS, draw, place
from vllm_annotate.proof.scenes import caption_of, random_size
from vllm_annotate.recipe.families import Family
from vllm_annotate.recipe.image_budget import ImageBudget

# Where the sizes are within the budget. The largest and smallest more than once: several servers may be behind one
# address.
SHARES = (0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
GRIDS = (28, 32)  # of Qwen's image processors
AROUND_IMAGE = 2  # tokens: Qwen's start and end of an image

Ask = Callable[[bytes], Awaitable[Completion | str]]  # a completion, or why there is none


class Count(NamedTuple):
    """The tokens of a request with an image of this size."""

    width: int
    height: int
    tokens: int


class Sight(BaseModel):
    """What a server sees.

    agrees: its counts are those of the family's grid. differs: they are not. uncounted: it counts no images.
    recorded: the family has no grid to compare them with.
    """

    verdict: Literal["agrees", "differs", "uncounted", "recorded"]
    counts: list[Count] = []
    grid: int | None = None  # pixels a side of a visual token, if the counts show one
    least: int | None = None  # visual tokens of an image, if the server enlarges smaller ones
    most: int | None = None  # visual tokens of an image, if the server reduces larger ones
    why: str = ""  # of uncounted

    def as_seen(self, budget: ImageBudget) -> ImageBudget:
        """The image budget of the server, about, where its counts show another than ours."""
        factor = self.grid or budget.factor
        least, most = (
            tokens * factor**2 if tokens else pixels
            for tokens, pixels in ((self.least, budget.min_pixels), (self.most, budget.max_pixels))
        )
        return replace(budget, min_pixels=min(least, most), max_pixels=most, factor=factor)


async def look(ask: Ask, model: str, family: Family, budget: ImageBudget, rng: random.Random) -> Sight:
    """Asks for one token about drawings of several sizes within the budget, and about none."""
    sizes = [random_size(rng, budget, share) for share in SHARES]
    *answers, bare = await asyncio.gather(*(ask(_request(model, rng, size)) for size in [*sizes, None]))
    for answer in answers:
        if isinstance(answer, str):
            return Sight(verdict="uncounted", why=answer)
    tokens = [answer.prompt_tokens for answer in answers if isinstance(answer, Completion)]
    counts = [Count(*size, number) for size, number in zip(sizes, tokens, strict=True)]
    if not family.grid and not all(tokens):
        return Sight(verdict="recorded")
    if not all(tokens):
        return Sight(verdict="uncounted", why="its answers have no usage")
    if family.grid and len(set(tokens)) == 1 < len({_tokens(count, budget.factor) for count in counts}):
        return Sight(verdict="uncounted", counts=counts, why=f"it counts {tokens[0]} tokens whatever the image")
    return judge(counts, family, budget, bare.prompt_tokens if isinstance(bare, Completion) else 0)


def judge(counts: Sequence[Count], family: Family, budget: ImageBudget, bare_tokens: int = 0) -> Sight:
    """Compares the counts with the family's grid, or finds the grid that they show.

    `bare_tokens` are those of the same request without an image, 0 if unknown.
    """
    counts = list(counts)
    fits = [_fit(counts, grid) for grid in dict.fromkeys((budget.factor, *GRIDS))]
    grid = next((fit.grid for fit in fits if fit.agree == len(counts)), None)
    if not family.grid:
        return Sight(verdict="recorded", counts=counts, grid=grid)
    if grid is not None:
        return Sight(verdict="agrees" if grid == budget.factor else "differs", counts=counts, grid=grid)
    fit = max(fits, key=lambda fit: fit.agree)
    if 2 * fit.agree < len(counts):  # by chance
        if not bare_tokens:
            return Sight(verdict="differs", counts=counts)
        fit = _Fit(0, _likely_grid(counts, budget, bare_tokens + AROUND_IMAGE), bare_tokens + AROUND_IMAGE)
    seen = [(max(1, count.tokens - fit.text), _tokens(count, fit.grid)) for count in counts]
    reduced = [tokens for tokens, whole in seen if tokens < whole]
    enlarged = [tokens for tokens, whole in seen if tokens > whole]
    return Sight(
        verdict="differs",
        counts=counts,
        grid=fit.grid,
        least=min(enlarged, default=None),
        most=max(reduced, default=None),
    )


def _likely_grid(counts: Sequence[Count], budget: ImageBudget, text: int) -> int:
    """The grid that explains most counts, within the limits that they show; the family's own if none is better."""
    tokens = [max(1, count.tokens - text) for count in counts]

    def explained(grid: int, slack: float) -> int:
        limits = ImageBudget(min(tokens) * grid**2, int(slack * max(tokens) * grid**2), grid)
        sizes = [smart_resize(count.width, count.height, limits) for count in counts]
        return sum(width * height == seen * grid**2 for (width, height), seen in zip(sizes, tokens, strict=True))

    # Images are reduced to whole tokens of the grid: the limit is up to an eighth above the most that was counted.
    return max(
        dict.fromkeys((budget.factor, *GRIDS)), key=lambda grid: max(explained(grid, s) for s in (1, 1.06, 1.12))
    )


class _Fit(NamedTuple):
    agree: int  # counts
    grid: int
    text: int  # tokens of a request beside its image


def _fit(counts: Sequence[Count], grid: int) -> _Fit:
    texts = Counter(count.tokens - _tokens(count, grid) for count in counts)
    # Of those equally frequent the largest: a server that reduces images leaves too few.
    text, agree = max(texts.items(), key=lambda item: (item[1], item[0]))
    return _Fit(agree if text >= 0 else 0, grid, text)


def _tokens(count: Count, grid: int) -> int:
    """Visual tokens of an image that is only rounded to the grid."""
    return max(1, round(count.width / grid)) * max(1, round(count.height / grid))


def _request(model: str, rng: random.Random, size: tuple[int, int] | None) -> bytes:
    content: list[dict[str, object]] = [{"type": "text", "text": caption_of()}]
    if size is not None:
        drawing = draw(size, place(rng, size, 1), rng.choice(BACKGROUNDS))
        content.insert(0, {"type": "image_url", "image_url": {"url": drawing.url().decode()}})
    return orjson.dumps({
        "model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 1,
    })  # fmt: skip
