"""Answers and failures → the output, on this machine or in an object store."""
