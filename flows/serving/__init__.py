"""A vLLM server that is looked after: checked before it starts, started, watched, restarted, stopped."""
