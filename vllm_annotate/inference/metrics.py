"""Parses the numbers that matter from vLLM's /metrics."""

import math
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

# vLLM's name → ours. Older versions have other names for two of them.
NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:gpu_cache_usage_perc": "kv_cache_usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:inter_token_latency_seconds_sum": "token_gap_seconds",
    "vllm:inter_token_latency_seconds_count": "token_gaps",
    "vllm:time_per_output_token_seconds_sum": "token_gap_seconds",
    "vllm:time_per_output_token_seconds_count": "token_gaps",
    "vllm:request_queue_time_seconds_sum": "queue_seconds",
    "vllm:e2e_request_latency_seconds_sum": "latency_seconds",
    "vllm:e2e_request_latency_seconds_count": "finished",
}


@dataclass(frozen=True)
class ServerMetrics:
    """One look at a server; sums over its engines, except for the KV cache: that of the fullest."""

    running: float
    waiting: float
    kv_cache_usage: float = 0.0  # 0 to 1
    preemptions: float = 0.0  # this and the following: since the server's start
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    token_gap_seconds: float = 0.0  # over all gaps between two tokens of an answer
    token_gaps: float = 0.0
    queue_seconds: float = 0.0  # spent by requests in the engine's queue
    latency_seconds: float = 0.0  # of requests, from arrival to finish
    finished: float = 0.0  # requests


def read_metrics(text: bytes) -> ServerMetrics | None:
    """Parses a Prometheus exposition; None if it is not vLLM's."""
    # vLLM exposes a thousand lines and the parser is slow: pass only the dozen that matter.
    wanted = [line for line in text.splitlines() if line.partition(b"{")[0].decode("ascii", "replace") in NAMES]
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(b"\n".join(wanted).decode() + "\n"):
            for sample in family.samples:
                name = NAMES[sample.name]
                if not math.isfinite(sample.value):
                    return None
                before = values.get(name, 0.0)
                values[name] = max(before, sample.value) if name == "kv_cache_usage" else before + sample.value
    except (ValueError, KeyError):
        return None
    if not {"running", "waiting"} <= values.keys():
        return None
    return ServerMetrics(**values)
