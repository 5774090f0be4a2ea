"""Helpers of the flows that need Prefect."""
