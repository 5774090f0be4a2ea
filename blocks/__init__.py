"""Prefect blocks: settings that outlive a run. Register them with `prefect block register -m blocks`."""

from blocks.annotation_recipe import AnnotationRecipe
from blocks.vllm_server import VLLMServer

__all__ = ["AnnotationRecipe", "VLLMServer"]
