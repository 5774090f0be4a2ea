"""What held a run back, second by second, and the one thing to do about it. Pure functions over looks at both sides.

What tells the cases apart, from the client inwards: requests that are ready and wait for a slot (none: the client is
too slow), requests in flight that the engine has not got (vLLM's front end), requests that wait in the engine (its
slots or its KV cache), and, where nothing waits anywhere, how busy the GPUs are (their compute, or our own limit).
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
    "slots": "the most sequences that vLLM runs at once",
    "kv_cache": "the KV cache",
    "gpu_compute": "GPU compute",
    "max_concurrency": "max_concurrency",
    "server_away": "the server was away, or declined requests",
    "nothing_to_do": "nothing to do",
    "climbing": "the right number of requests was still being looked for",
    "not_seen": "what the server does cannot be seen",
    "too_short": "the run was too short to tell",
}
ADVICE: dict[Kind, str] = {
    "front_end": "vLLM holds requests ahead of its engine, or between its steps, on its CPU: spread the work over more "
    "servers (start.data_parallel_size, or more endpoints), or send smaller images (max_visual_tokens)",
    "kv_cache": "the KV cache is full while requests wait: raise gpu_memory_utilization, store it in 8 bits "
    "(--kv-cache-dtype fp8), or ask for less (max_visual_tokens, max_tokens)",
    "gpu_compute": "the GPUs do what they can: more of them, a smaller or quantised model, or smaller images "
    "(max_visual_tokens) make it faster; no setting of requests does",
    "server_away": "endpoints did not answer, or turned requests away: see the server's log; another endpoint "
    "helps, or a lower max_concurrency where it was busy",
    "slots": "requests wait while vLLM runs no more and its KV cache has room: raise --max-num-seqs, or "
    "--max-num-batched-tokens where that is not reached (start.extra_arguments)",
    "not_seen": "the server shows no /metrics: point the run at vLLM itself rather than at a gateway",
    "too_short": "nothing; a run of a few seconds has no bottleneck worth a name",
    "climbing": "the run was too short for auto to settle: give max_concurrency a number, or annotate more at once",
    "nothing_to_do": "nothing: all images were asked, and what was left was waiting for their answers",
}
TAKEN_IN = 0.7  # share of what is in flight that the engine should have; the rest travels
FULL_CACHE = 0.9
BUSY_GPU = 85.0  # percent
BUSY_CORES = 0.85  # share of this machine's
FULL_LIMIT = 0.9  # share of the limit that is in flight when it is used
LATE_SECONDS = 0.1
ENOUGH_LOOKS = 5
# Told only where there is nothing else.
UNIMPORTANT: tuple[Kind, ...] = ("climbing", "not_seen", "nothing_to_do", "too_short")


@dataclass(frozen=True)
class RunSample:
    """One second of a run, over all its endpoints; None where it cannot be seen."""

    endpoints: int
    up: int  # of them
    in_flight: float
    limit: float
    ready: float  # requests that wait for a slot
    preparing: float  # images that are being read and resized
    resting: float  # requests that wait to be tried again
    unasked: float  # images that nothing was done about yet
    client_cores: float  # that this process uses
    machine_cores: int
    prepare_seconds: float | None  # an image
    lag_seconds: float = 0.0  # by which this process's event loop is late
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None  # 0 to 1
    preemptions_per_second: float | None = None
    gpu_utilisation: float | None = None  # percent, of the cards that work for the run
    automatic: bool = False  # the limit is found by itself
    climbing: bool = False  # and not found yet


@dataclass(frozen=True)
class Verdict:
    """What held the run back most of the time; `shares` has all that did, as shares of the seconds seen."""

    kind: Kind
    title: str
    evidence: str
    advice: str
    shares: dict[Kind, float]


class Bottleneck:
    """Takes looks one by one; says at any time what they amount to."""

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
        """What held back most of the time in which something did."""
        total = self._seconds.total()
        telling = Counter({kind: count for kind, count in self._seconds.items() if kind not in UNIMPORTANT})
        kind: Kind = "too_short"
        if telling.total() >= max(ENOUGH_LOOKS, 0.1 * total):
            kind = telling.most_common(1)[0][0]
        elif total >= ENOUGH_LOOKS:
            kind = self._seconds.most_common(1)[0][0]
        shares: dict[Kind, float] = {of: round(count / total, 3) for of, count in self._seconds.most_common()}
        means = {name: totals.mean for name, totals in self._means[kind].items()}
        evidence = _evidence(means) if means else "the run was over before anything could be seen"
        return Verdict(kind, TITLES[kind], evidence, _advice(kind, means), shares)


def what_holds_back(look: RunSample) -> Kind:
    """The first of the places between an image file and the GPU at which something is missing or waits."""
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
        return "client" if look.lag_seconds >= LATE_SECONDS else "front_end"  # sent and answered, but not yet by us
    return _engine(look, look.waiting)


def _engine(look: RunSample, waiting: float) -> Kind:
    """What holds back an engine that has its requests."""
    gpu_is_busy = None if look.gpu_utilisation is None else look.gpu_utilisation >= BUSY_GPU
    used, running = look.kv_cache_usage or 0, (look.running or 0) / look.up  # of one server
    no_room_for_another = used >= FULL_CACHE or (running >= 1 and used * (1 + 1 / running) > 1)
    if look.preemptions_per_second or (waiting >= 1 and no_room_for_another):
        return "kv_cache"
    if waiting >= 1:
        return "gpu_compute" if gpu_is_busy else "slots"
    if look.automatic:  # more requests were tried, and brought no more tokens
        return "front_end" if gpu_is_busy is False else "gpu_compute"
    return "gpu_compute" if gpu_is_busy else "max_concurrency"


def _evidence(means: dict[str, float]) -> str:
    """The means of the seconds that the verdict rests on."""
    told = [f"{means['up']:.1f} of {means['endpoints']:.0f} servers up"] if means["up"] < means["endpoints"] else []
    if "gpu_utilisation" in means:
        told.append(f"GPU {means['gpu_utilisation']:.0f} %")
    told.append(f"in flight {means['in_flight']:.0f} of at most {means['limit']:.0f}")
    if "running" in means:
        told.append(f"running {means['running']:.0f}, waiting {means['waiting']:.0f}")
    if "kv_cache_usage" in means:
        told.append(f"KV cache {100 * means['kv_cache_usage']:.0f} %")
    if means.get("preemptions_per_second"):
        told.append(f"{means['preemptions_per_second']:.1f} preemptions a second")
    told.append(f"{means['ready']:.0f} requests ready and waiting to be sent")
    told.append(f"this process used {means['client_cores']:.1f} of {means['machine_cores']:.0f} cores")
    if "prepare_seconds" in means:
        told.append(f"{1000 * means['prepare_seconds']:.0f} ms to prepare an image")
    return "; ".join(told)


def _advice(kind: Kind, means: dict[str, float]) -> str:
    """One thing to do."""
    if kind == "client":
        return _advice_for_client(means)
    if kind == "max_concurrency":
        gpu = f"GPU {means['gpu_utilisation']:.0f} %, " if "gpu_utilisation" in means else ""
        seen = f"{gpu}waiting {means['waiting']:.0f}, in flight {means['in_flight']:.0f} = limit"
        return f"{seen}: raise max_concurrency, or leave it at auto"
    return ADVICE[kind]


def _advice_for_client(means: dict[str, float]) -> str:
    cores, used = means["machine_cores"], means["client_cores"]
    each = f" ({1000 * means['prepare_seconds']:.0f} ms an image)" if "prepare_seconds" in means else ""
    if used >= BUSY_CORES * cores:
        return (
            f"all {cores:.0f} cores are busy with reading and resizing images{each}: store them smaller, or use a "
            "machine with more cores"
        )
    if 0.85 <= used <= 1.15:
        return f"one core is full with sending requests and the rest is idle{each}: split the input over two runs"
    if means["preparing"] < 1:
        return f"images are handed out too slowly, {cores - used:.1f} of {cores:.0f} cores are idle: raise chunk_size"
    return (
        f"images come slowly{each} while {cores - used:.1f} of {cores:.0f} cores are idle: the disk or the network "
        "share is slow, so copy the images to a local disk"
    )
