"""Requests to vLLM: endpoints, how many requests in flight, which endpoint takes the next one."""
