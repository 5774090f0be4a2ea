"""Finds the bottleneck of a run, and one remedy. Pure functions over samples of client, servers and GPUs.

From the client inwards: if no requests are ready to be sent, the client is too slow; if requests in flight have not
reached the engine, vLLM's front end is; if requests wait in the engine, its slots or its KV cache are the limit; if
none wait anywhere, it is GPU compute or our own limit, depending on how busy the GPUs are.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Literal

from vllm_annotate.telemetry.history import Totals

Kind = Literal[
    "client", "front_end", "slots", "kv_cache", "gpu_compute", "max_concurrency", "server_away", "nothing_to_do",
    "climbing", "not_seen", "too_short",
]  # fmt: skip
TITLES: dict[Kind, str] = {
    "client": "this machine prepares images too slowly",
    "front_end": "vLLM's front end",
    "slots": "vLLM's limit of running sequences",
    "kv_cache": "the KV cache",
    "gpu_compute": "GPU compute",
    "max_concurrency": "max_concurrency",
    "server_away": "the server was down, or declined requests",
    "nothing_to_do": "nothing: no images were left",
    "climbing": "auto concurrency was still ramping up",
    "not_seen": "unknown: the server has no metrics of its own",
    "too_short": "the run was too short to tell",
}
ADVICE: dict[Kind, str] = {
    "front_end": "vLLM's CPU holds requests back before the engine or between its steps: use more servers "
    "(start.data_parallel_size, or more endpoints), or send smaller images (max_visual_tokens)",
    "kv_cache": "the KV cache is full while requests wait: raise gpu_memory_utilization, store the cache in 8 bits "
    "(--kv-cache-dtype fp8), or use fewer tokens per request (max_visual_tokens, max_tokens)",
    "gpu_compute": "the GPUs are busy: use more GPUs, a smaller or quantized model, or smaller images "
    "(max_visual_tokens); a higher concurrency does not help",
    "server_away": "endpoints did not answer, or declined requests: check the server's log, add an endpoint, or lower "
    "max_concurrency if the server was overloaded",
    "slots": "requests wait although the KV cache has room: raise --max-num-seqs, or --max-num-batched-tokens if that "
    "limit is not reached (start.extra_arguments)",
    "not_seen": "the server has no /metrics of its own: name each vLLM server as an endpoint instead of a gateway",
    "too_short": "nothing: a run of a few seconds is too short to measure",
    "climbing": "the run was too short for auto to settle: set max_concurrency to a number, or annotate more per run",
    "nothing_to_do": "nothing: all requests were sent, and the run waited for the last answers",
}
TAKEN_IN = 0.7  # share of the requests in flight that the engine should have; the rest is in transit
FULL_CACHE = 0.9
BUSY_GPU = 85.0  # percent
BUSY_CORES = 0.85  # share of this machine's cores
FULL_LIMIT = 0.9  # share of the limit in flight
LATE_SECONDS = 0.1
ENOUGH_LOOKS = 5
# Reported only if nothing else is found.
UNIMPORTANT: tuple[Kind, ...] = ("climbing", "not_seen", "nothing_to_do", "too_short")


@dataclass(frozen=True)
class RunSample:
    """One second of a run, over all endpoints; None if not measured."""

    endpoints: int
    up: int  # endpoints
    in_flight: float
    limit: float
    ready: float  # requests that wait to be sent
    preparing: float  # images being read and resized
    resting: float  # requests that wait for a retry
    unasked: float  # images not started yet
    client_cores: float  # used by this process
    machine_cores: int
    prepare_seconds: float | None  # per image
    lag_seconds: float = 0.0  # of this process's event loop
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None  # 0 to 1
    preemptions_per_second: float | None = None
    gpu_utilisation: float | None = None  # percent, of the GPUs that the run uses
    automatic: bool = False  # max_concurrency is auto
    climbing: bool = False  # auto is still ramping up


@dataclass(frozen=True)
class Verdict:
    """The main bottleneck of a run; `shares` has all of them, as shares of the time."""

    kind: Kind
    title: str
    evidence: str
    advice: str
    shares: dict[Kind, float]


class Bottleneck:
    """Collects samples; gives a verdict at any time."""

    def __init__(self) -> None:
        self._seconds: Counter[Kind] = Counter()
        self._means: defaultdict[Kind, defaultdict[str, Totals]] = defaultdict(lambda: defaultdict(Totals))

    def add(self, look: RunSample) -> None:
        """Counts a second."""
        kind = what_holds_back(look)
        self._seconds[kind] += 1
        for name, value in asdict(look).items():
            if value is not None:
                self._means[kind][name].add(value)

    def verdict(self) -> Verdict:
        """The most frequent bottleneck; the unimportant ones only if there is no other."""
        total = self._seconds.total()
        telling = Counter({kind: count for kind, count in self._seconds.items() if kind not in UNIMPORTANT})
        kind: Kind = "too_short"
        if telling.total() >= max(ENOUGH_LOOKS, 0.1 * total):
            kind = telling.most_common(1)[0][0]
        elif total >= ENOUGH_LOOKS:
            kind = self._seconds.most_common(1)[0][0]
        shares: dict[Kind, float] = {of: round(count / total, 3) for of, count in self._seconds.most_common()}
        means = {name: totals.mean for name, totals in self._means[kind].items()}
        evidence = _evidence(means) if means else "the run ended before the first sample"
        return Verdict(kind, TITLES[kind], evidence, _advice(kind, means), shares)


def what_holds_back(look: RunSample) -> Kind:
    """The bottleneck of one second: the first stage between image file and GPU that starves or queues."""
    if not look.up:
        return "server_away"
    if not look.ready and look.in_flight < FULL_LIMIT * look.limit:
        if look.resting > max(look.preparing, look.in_flight):
            return "server_away"
        return "client" if look.unasked > 0 else "nothing_to_do"
    if look.climbing:
        return "climbing"
    if look.running is None or look.waiting is None:
        return "not_seen"
    if look.running + look.waiting < TAKEN_IN * look.in_flight:
        return "client" if look.lag_seconds >= LATE_SECONDS else "front_end"  # a late event loop looks the same
    return _engine(look, look.waiting)


def _engine(look: RunSample, waiting: float) -> Kind:
    """The bottleneck of an engine that has its requests."""
    gpu_is_busy = None if look.gpu_utilisation is None else look.gpu_utilisation >= BUSY_GPU
    used, running = look.kv_cache_usage or 0, (look.running or 0) / look.up  # per server
    no_room_for_another = used >= FULL_CACHE or (running >= 1 and used * (1 + 1 / running) > 1)
    if look.preemptions_per_second or (waiting >= 1 and no_room_for_another):
        return "kv_cache"
    if waiting >= 1:
        return "gpu_compute" if gpu_is_busy else "slots"
    if look.automatic:  # it has tried more requests, without more tokens
        return "front_end" if gpu_is_busy is False else "gpu_compute"
    return "gpu_compute" if gpu_is_busy else "max_concurrency"


def _evidence(means: dict[str, float]) -> str:
    """The measurements behind the verdict, in words."""
    parts = [f"{means['up']:.1f} of {means['endpoints']:.0f} servers up"] if means["up"] < means["endpoints"] else []
    if "gpu_utilisation" in means:
        parts.append(f"GPU {means['gpu_utilisation']:.0f} %")
    parts.append(f"in flight {means['in_flight']:.0f} of at most {means['limit']:.0f}")
    if "running" in means:
        parts.append(f"running {means['running']:.0f}, waiting {means['waiting']:.0f}")
    if "kv_cache_usage" in means:
        parts.append(f"KV cache {100 * means['kv_cache_usage']:.0f} %")
    if means.get("preemptions_per_second"):
        parts.append(f"{means['preemptions_per_second']:.1f} preemptions per second")
    parts.append(f"{means['ready']:.0f} requests ready to be sent")
    parts.append(f"this process used {means['client_cores']:.1f} of {means['machine_cores']:.0f} cores")
    if "prepare_seconds" in means:
        parts.append(f"{1000 * means['prepare_seconds']:.0f} ms to prepare each image")
    return "; ".join(parts)


def _advice(kind: Kind, means: dict[str, float]) -> str:
    """The remedy."""
    if kind == "client":
        return _advice_for_client(means)
    if kind == "max_concurrency":
        gpu = f"GPU {means['gpu_utilisation']:.0f} %, " if "gpu_utilisation" in means else ""
        seen = f"{gpu}waiting {means['waiting']:.0f}, in flight {means['in_flight']:.0f} = the limit"
        return f"{seen}: raise max_concurrency, or set it to auto"
    return ADVICE[kind]


def _advice_for_client(means: dict[str, float]) -> str:
    cores, used = means["machine_cores"], means["client_cores"]
    each = f" ({1000 * means['prepare_seconds']:.0f} ms per image)" if "prepare_seconds" in means else ""
    if used >= BUSY_CORES * cores:
        return (
            f"all {cores:.0f} cores are busy reading and resizing images{each}: store smaller images, or use a machine "
            "with more cores"
        )
    if 0.85 <= used <= 1.15:
        return f"one core is fully busy sending requests and the rest is idle{each}: split the input over two runs"
    if means["preparing"] < 1:
        return f"chunks are too small to keep {cores:.0f} cores busy, {cores - used:.1f} are idle: raise chunk_size"
    return (
        f"images load slowly{each} while {cores - used:.1f} of {cores:.0f} cores are idle: the disk or network is "
        "slow; copy the images to a local disk"
    )
