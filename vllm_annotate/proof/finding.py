"""What the proof of an endpoint found, in figures and in words."""

from pydantic import BaseModel

from vllm_annotate.proof.pointing import GOOD_FIT, Pointing
from vllm_annotate.proof.sight import Sight
from vllm_annotate.recipe.families import Family
from vllm_annotate.recipe.settings import Recipe


class Canaries(BaseModel):
    """Scenes that were asked about during the run."""

    asked: int = 0
    wrong: int = 0
    in_doubt: int = 0  # answers between the last right one and the wrong ones


class Finding(BaseModel):
    """What an endpoint showed before its first image, or when it came back."""

    family: str
    sees: Sight
    points: Pointing
    as_they_are: bool  # whether images within the budget may be sent unchanged
    refused: str = ""  # why it gets no images
    advice: str = ""  # what it does to images, and what to set
    canaries: Canaries = Canaries()

    @property
    def is_proven(self) -> bool:
        """Whether what it sees is known, and its boxes are right."""
        return self.sees.verdict in ("agrees", "recorded") and self.points.verdict == "proven" and not self.refused

    def sentences(self) -> list[str]:
        """The finding in words: what it sees, where it points, what the canaries showed."""
        return [_sees(self), _points(self), *_canaries(self.canaries)]


def find(recipe: Recipe, family: Family, sees: Sight, points: Pointing) -> Finding:
    """Draws the conclusions."""
    finding = Finding(
        family=family.name,
        sees=sees,
        points=points,
        advice=_differs(sees, recipe, family) if sees.verdict == "differs" else "",
        as_they_are=sees.verdict == "agrees" or not family.grid,
    )
    if points.verdict == "other":
        finding.refused = _other_space(finding)
    elif sees.verdict == "differs" and family.space == "pixels":
        finding.refused = f"{finding.advice}; boxes in pixels would lie elsewhere"
    elif points.verdict == "unproven" and not points.why and _has_another_grid(sees, family):
        finding.refused = f"{finding.advice}; its boxes fit drawn scenes in no space"
    return finding


def _has_another_grid(sees: Sight, family: Family) -> bool:
    return sees.verdict == "differs" and sees.grid not in (None, family.factor)


def _sees(finding: Finding) -> str:
    sees = finding.sees
    sent = "images within the budget are sent as they are" if finding.as_they_are else "images are resized here"
    if sees.verdict == "agrees":
        return f"it sees what it should: {len(sees.counts)} token counts match a grid of {sees.grid} pixels; {sent}"
    if sees.verdict == "recorded":
        grid = f"match a grid of {sees.grid} pixels" if sees.grid else "match no grid that is known"
        counts = f"its token counts {grid}" if sees.counts else "its answers have no usage"
        return f"{counts}, and boxes of {finding.family} do not depend on that; {sent}"
    if sees.verdict == "differs":
        return f"{finding.advice}; {sent}"
    return f"what it sees is unknown, as {sees.why}; {sent}"


def _points(finding: Finding) -> str:
    points = finding.points
    if points.verdict == "proven":
        return f"its boxes are proven: mean IoU {points.mean_iou:.2f} on {points.scenes} drawn scenes"
    if points.verdict == "other":
        return f"its boxes are in another space: {points.space}"
    why = points.why or f"they fit {points.scenes} drawn scenes in no space (mean IoU under {GOOD_FIT})"
    return f"its boxes are unproven: {why}"


def _canaries(canaries: Canaries) -> list[str]:
    if not canaries.asked:
        return []
    wrong = f"{canaries.wrong} wrong; {canaries.in_doubt} answers in doubt" if canaries.wrong else "none wrong"
    return [f"canaries during the run: {canaries.asked}, {wrong}"]


def _other_space(finding: Finding) -> str:
    points = finding.points
    remedy = f"set the recipe's family to {points.family}" if points.family else "no family has this space"
    some = ""
    if points.strays:
        some, remedy = f"in {points.strays} of {points.scenes} scenes ", "check the servers behind this address"
    return (
        f"its boxes are {some}in another space than {finding.family}'s: they fit drawn scenes as {points.space} "
        f"(IoU {points.fits[points.space]:.2f}), not as declared ({points.mean_iou:.2f}): {remedy}"
    )


def _differs(sees: Sight, recipe: Recipe, family: Family) -> str:
    """What the server does to images, and what to set."""
    pixels = family.factor**2
    if _has_another_grid(sees, family):
        return (
            f"its visual tokens are of {sees.grid}×{sees.grid} pixels, not {family.factor}×{family.factor} as with "
            f"{family.name}: correct the recipe's family"
        )
    if sees.most is not None:
        return (
            f"it reduces images to about {sees.most} visual tokens, fewer than the recipe's max_visual_tokens of "
            f"{recipe.max_visual_tokens}: start it with --mm-processor-kwargs "
            f"'{{\"max_pixels\": {recipe.max_visual_tokens * pixels}}}', or set max_visual_tokens to {sees.most}"
        )
    if sees.least is not None:
        return (
            f"it enlarges images to about {sees.least} visual tokens, more than the recipe's min_visual_tokens of "
            f"{recipe.min_visual_tokens}: start it with --mm-processor-kwargs "
            f"'{{\"min_pixels\": {recipe.min_visual_tokens * pixels}}}', or set min_visual_tokens to {sees.least}"
        )
    return f"its token counts match no grid of Qwen's: correct the recipe's family ({family.name}), or check the server"
