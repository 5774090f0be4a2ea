"""Smaller programs for the same job, to compare the flow with."""
