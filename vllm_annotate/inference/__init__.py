"""Requests to vLLM: endpoints, how many requests at once, which endpoint takes the next one."""
