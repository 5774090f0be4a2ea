"""The recipe as a block: saved and edited in the Prefect UI, loaded by name."""

from prefect.blocks.core import Block

from flows.recipe import Recipe


class AnnotationRecipe(Recipe, Block):
    """Everything that decides an answer: prompts, sampling, schema and image budget."""

    _block_type_name = "Annotation Recipe"
    _block_type_slug = "annotation-recipe"
    _description = "Prompts, sampling, answer schema and image budget of an annotation run."
