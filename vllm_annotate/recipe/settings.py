"""The settings of a recipe: prompts, schema, sampling and image budget."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from vllm_annotate.recipe.families import Family, FamilyName, names_family, resolve_family
from vllm_annotate.recipe.image_budget import ImageBudget

# Sampling temperatures of the attempts after the first.
REASK_TEMPERATURES = (0.3, 0.6, 0.9, 1.2)
# An object takes about 30 tokens; no good answer has the same 8 to 80 tokens five times in a row.
REPETITION_DETECTION = {"min_pattern_size": 8, "max_pattern_size": 80, "min_count": 5}


class Recipe(BaseModel):
    """Everything that decides an answer, and nothing else."""

    family: FamilyName = Field(
        default="auto",
        title="Model family",
        description="Space and form in which the model writes boxes; auto goes by the served model's name, "
        "else by its boxes for drawn scenes.",
    )
    language: Literal["en", "zh"] = Field(
        default="en", title="Language", description="Language of the built-in prompts, and therefore of the answers."
    )
    system_prompt: str | None = Field(
        default=None,
        title="System prompt",
        description="Replaces the built-in instructions when set; an empty text sends no system message.",
    )
    user_prompt: str | None = Field(
        default=None,
        title="User prompt",
        description="Replaces the built-in text that follows the image; {caption} stands for the row's caption.",
    )
    structured_output: bool = Field(
        default=True,
        title="Structured output",
        description="Have the server enforce the answer's JSON schema.",
    )
    temperature: float = Field(default=0.0, ge=0, le=2, title="Temperature", description="0 is greedy decoding.")
    top_p: float = Field(default=1.0, gt=0, le=1, title="Top p", description="Nucleus sampling; 1 is off.")
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        title="Seed",
        description="Of sampling, sent with every request; empty sends none. Only matters above temperature 0.",
    )
    max_tokens: int = Field(
        default=1536, ge=16, title="Max tokens", description="Longest answer in tokens; longer ones are truncated."
    )
    repetition_detection: bool = Field(
        default=True, title="Repetition detection", description="Have vLLM stop an answer that repeats itself."
    )
    reasks: int = Field(
        default=2,
        ge=0,
        le=len(REASK_TEMPERATURES),
        title="Re-asks",
        description="How often an unparsable, truncated or looping answer is asked again, at temperatures 0.3, 0.6, … "
        "The best attempt is taken.",
    )
    max_objects: int = Field(default=50, ge=1, title="Max objects", description="Maximum objects per answer.")
    min_visual_tokens: int = Field(
        default=128,
        ge=4,
        title="Min visual tokens",
        description="Smaller images are enlarged to this budget (28 × 28 pixels per token, 32 × 32 for Qwen3-VL).",
    )
    max_visual_tokens: int = Field(
        default=1280, ge=4, title="Max visual tokens", description="Larger images are reduced to this budget."
    )
    jpeg_quality: int = Field(
        default=90,
        ge=50,
        le=100,
        title="JPEG quality",
        description="Of images that must be turned, converted or resized. Other JPEGs keep their pixels and lose their "
        "metadata.",
    )

    @field_validator("user_prompt")
    @classmethod
    def _only_a_known_placeholder(cls, value: str | None) -> str | None:
        if value is not None and "{caption}" not in value:
            raise ValueError(f"user_prompt {value!r:.80} has no {{caption}}: add it where the caption belongs")
        return value

    @model_validator(mode="after")
    def _budget_is_a_range(self) -> "Recipe":
        if self.min_visual_tokens > self.max_visual_tokens:
            raise ValueError(
                f"min_visual_tokens {self.min_visual_tokens} is above max_visual_tokens {self.max_visual_tokens}: "
                "lower the one or raise the other"
            )
        return self

    def image_budget(self, family: Family) -> ImageBudget:
        """Returns the image budget in pixels, as smart_resize takes it."""
        pixels_per_token = family.factor**2
        return ImageBudget(
            min_pixels=self.min_visual_tokens * pixels_per_token,
            max_pixels=self.max_visual_tokens * pixels_per_token,
            factor=family.factor,
            jpeg_quality=self.jpeg_quality,
            grid=family.grid,
        )

    def servers_budget(self, model: str) -> ImageBudget | None:
        """Returns the image budget for a server of this model; None if its family has no grid, or is unknown."""
        if not names_family(self.family, model):
            return None
        family = resolve_family(self.family, model)
        return self.image_budget(family) if family.grid else None

    def temperature_of(self, attempt: int) -> float:
        """Returns the sampling temperature of an attempt, the first being 1."""
        return self.temperature if attempt == 1 else max(self.temperature, REASK_TEMPERATURES[attempt - 2])
