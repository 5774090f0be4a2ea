"""Samples of GPUs, servers and the client, and the bottleneck of a run."""
