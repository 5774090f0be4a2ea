"""Annotation of captioned images through vLLM: the work itself, which knows nothing of Prefect."""
