"""A stand-in for vLLM: its HTTP interface, its batching in simulation, its faults on demand. It is no model.

It finds coloured shapes by their pixels, so that what it answers is true for the images of `demo.scenes`.
"""
