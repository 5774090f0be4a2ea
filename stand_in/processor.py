"""The image processor of a model family: the size that its model sees of an image, and the tokens that this costs."""

from dataclasses import dataclass
from functools import cache

from vllm_annotate.images.prepare import smart_resize
from vllm_annotate.recipe.families import FAMILIES, Family
from vllm_annotate.recipe.image_budget import ImageBudget

TILE, TILE_TOKENS, MOST_TILES = 448, 256, 12  # InternVL's


@dataclass(frozen=True)
class Processor:
    """Qwen's families resize to a grid within limits; all others cut into tiles, like InternVL."""

    family: Family = FAMILIES["qwen2.5-vl"]
    min_visual_tokens: int = 4
    max_visual_tokens: int = 16_384

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image as the model sees it. Raises ImageFailure if it is too long."""
        if not self._has_grid:
            return width, height
        pixels = self.family.factor**2
        budget = ImageBudget(self.min_visual_tokens * pixels, self.max_visual_tokens * pixels, self.family.factor)
        return smart_resize(width, height, budget)

    def tokens(self, width: int, height: int) -> int:
        """The visual tokens of an image. Raises ImageFailure if it is too long."""
        if self._has_grid:
            seen = self.size(width, height)
            return seen[0] * seen[1] // self.family.factor**2
        tiles = _tiles(width, height)
        return TILE_TOKENS * (tiles + (tiles > 1))  # several tiles go with a thumbnail of the whole

    @property
    def _has_grid(self) -> bool:
        return self.family.name.startswith("qwen")


def _tiles(width: int, height: int) -> int:
    """The number of tiles of the grid whose aspect is nearest; of several, of the largest that the image half fills.

    Follows `find_closest_aspect_ratio` in InternVL's `dynamic_preprocess`.
    """
    across, down = 1, 1
    least = float("inf")
    for columns, rows in _grids():
        difference = abs(width / height - columns / rows)
        half_filled = width * height > 0.5 * TILE**2 * columns * rows
        if difference < least or (difference == least and half_filled):
            least, across, down = difference, columns, rows
    return across * down


@cache
def _grids() -> list[tuple[int, int]]:
    sides = range(1, MOST_TILES + 1)
    return sorted(
        ((across, down) for across in sides for down in sides if across * down <= MOST_TILES),
        key=lambda grid: grid[0] * grid[1],
    )
