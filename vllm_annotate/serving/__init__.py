"""The lifecycle of a vLLM server: check, start, watch, restart, stop."""
