"""A stand-in for vLLM: its HTTP interface, simulated batching, and faults on demand. It is not a model.

It finds coloured shapes by their pixels, so its answers are correct for the images of `demo.scenes`.
"""
