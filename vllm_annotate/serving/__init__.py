"""The lifecycle of a vLLM server: checked before it starts, started, watched, restarted, stopped."""
