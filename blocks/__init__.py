"""Prefect blocks: settings that outlive a run. Register them with `prefect block register -m blocks`."""

import os

# A run talks to its own servers only, unless you want otherwise. Prefect reads this when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")

from blocks.annotation_recipe import AnnotationRecipe
from blocks.vllm_server import VLLMServer

__all__ = ["AnnotationRecipe", "VLLMServer"]
