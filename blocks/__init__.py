"""Prefect blocks: what outlives a run. `prefect block register -m blocks` makes them known to a Prefect server."""

from blocks.annotation_recipe import AnnotationRecipe
from blocks.vllm_server import VLLMServer

__all__ = ["AnnotationRecipe", "VLLMServer"]
