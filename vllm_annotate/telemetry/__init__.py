"""Samples of GPUs, servers and the client, and what limits a run."""
