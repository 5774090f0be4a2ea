"""The recipe as a Prefect block: edited in the UI, loaded by name."""

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict

from blocks.referable_schema import referable_schema
from vllm_annotate.recipe.settings import Recipe


class AnnotationRecipe(Recipe, Block):
    """Everything that decides an answer: model family, prompts, schema, sampling and image budget."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra=referable_schema)

    _block_type_name = "Annotation Recipe"
    _block_type_slug = "annotation-recipe"
    _description = "Prompts, sampling, answer schema and image budget of an annotation run."
