"""Answers and failures → the output, here or in an object store."""
