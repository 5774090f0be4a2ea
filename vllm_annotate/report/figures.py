"""Builds from telemetry the tables and charts that report.json, report.html and the artifacts share."""

from vllm_annotate.report.charts import Line, chart
from vllm_annotate.report.report import Seen
from vllm_annotate.report.words import Language, translator
from vllm_annotate.telemetry.history import History, Totals
from vllm_annotate.telemetry.sample_log import Recorded

FEWEST_SAMPLES = 3  # in a chart
MOST_LINES = 8  # in a chart
NOTHING = Totals()


def telemetry_figures(telemetry: Recorded) -> Seen:
    """The means and extremes for report.json; None if not measured."""
    return Seen(
        samples=telemetry.samples,
        missing=telemetry.notes,
        gpus={name: _gpu(history) for name, history in _of(telemetry, "gpu")},
        servers={url: _server(history) for url, history in _of(telemetry, "server")},
        client=next((_client(history) for _, history in _of(telemetry, "client")), {}),
    )


def telemetry_charts(telemetry: Recorded, language: Language = "en") -> list[str]:
    """SVG charts of GPUs, requests, tokens and images."""
    say = translator(language)
    if telemetry.samples < FEWEST_SAMPLES:
        return []
    gpus, servers, client = (_of(telemetry, subject) for subject in ("gpu", "server", "client"))
    charts = []
    if gpus:
        charts += [
            chart(say("GPU utilisation"), _lines(gpus, "utilisation"), unit=" %", top=100),
            chart(say("GPU memory"), _memory_lines(gpus), unit=" %", top=100),
        ]
        if any("power_watts" in history.totals for _, history in gpus):
            charts.append(chart(say("GPU power"), _lines(gpus, "power_watts"), unit=" W"))
    one = len(servers) == 1
    requests = [
        Line(say(name) if one else f"{say(name)} {url}", history.points(name.replace(" ", "_")))
        for url, history in servers[:MOST_LINES]
        for name in (("in flight", "running", "waiting") if one else ("running",))
    ]
    charts.append(chart(say("Requests"), requests))
    charts.append(chart(say("KV cache"), _lines(servers, "kv_cache_usage", 100), unit=" %", top=100))
    charts.append(chart(say("Tokens generated per second"), _lines(servers, "generation_tokens_per_second")))
    charts.append(chart(say("Images per second"), _lines(client, "images_per_second")))
    return charts


def gpu_rows(figures: Seen) -> list[list[str]]:
    """The rows of the GPU table, header first."""
    head = ["GPU", "busy", "memory", "power", "hottest", "power cap", "throttled", "energy"]
    return [head] + [
        [
            f"GPU {name}",
            _cell(gpu["utilisation_mean"], " %"),
            _of_total(gpu["memory_used_mib_max"], gpu["memory_total_mib"]),
            _cell(gpu["power_watts_mean"], " W"),
            _cell(gpu["temperature_c_max"], " °C"),
            _cell(gpu["power_capped_share"], " %", 100),
            _cell(gpu["heat_throttled_share"], " %", 100),
            _cell(gpu["energy_wh"], " Wh"),
        ]
        for name, gpu in figures.gpus.items()
    ]


def server_rows(figures: Seen) -> list[list[str]]:
    """The rows of the server table, header first."""
    head = ["server", "in flight", "running", "waiting", "KV cache", "tokens/s", "queued", "latency"]
    return [head] + [
        [
            url,
            _cell(server["in_flight_mean"]),
            _cell(server["running_mean"]),
            _cell(server["waiting_mean"]),
            _cell(server["kv_cache_usage_max"], " %", 100),
            _cell(server["generation_tokens_per_second_mean"]),
            _cell(server["queue_seconds_mean"], " s"),
            _cell(server["latency_seconds_mean"], " s"),
        ]
        for url, server in figures.servers.items()
    ]


def _of(telemetry: Recorded, subject: str) -> list[tuple[str, History]]:
    return [(name, history) for (of, name), history in list(telemetry.histories.items()) if of == subject]


def _lines(histories: list[tuple[str, History]], measurement: str, scale: float = 1) -> list[Line]:
    return [
        Line(name, [(at, None if value is None else scale * value) for at, value in history.points(measurement)])
        for name, history in histories[:MOST_LINES]
    ]


def _memory_lines(gpus: list[tuple[str, History]]) -> list[Line]:
    lines = []
    for name, history in gpus[:MOST_LINES]:
        total = history.totals.get("memory_total_mib", NOTHING).max
        lines += _lines([(name, history)], "memory_used_mib", 100 / total) if total > 0 else []
    return lines


def _gpu(history: History) -> dict[str, float | None]:
    totals = history.totals
    energy, power, seconds = totals.get("energy_joules"), totals.get("power_watts"), totals["second"]
    joules = None
    if energy is not None:
        joules = max(0.0, energy.last - energy.first)  # a reloaded driver counts from 0
    elif power is not None:
        joules = power.mean * (seconds.last - seconds.first)
    return {
        "utilisation_mean": _mean(totals, "utilisation"),
        "memory_used_mib_max": _most(totals, "memory_used_mib"),
        "memory_total_mib": _most(totals, "memory_total_mib"),
        "power_watts_mean": _mean(totals, "power_watts"),
        "power_watts_max": _most(totals, "power_watts"),
        "temperature_c_max": _most(totals, "temperature_c"),
        "sm_clock_mhz_mean": _mean(totals, "sm_clock_mhz"),
        "power_capped_share": _mean(totals, "power_capped"),
        "heat_throttled_share": _mean(totals, "heat_throttled"),
        "energy_wh": None if joules is None else round(joules / 3600, 3),
        "last_seen_second": round(seconds.last, 1),
    }


def _server(history: History) -> dict[str, float | None]:
    means = (
        "up", "in_flight", "running", "waiting", "prompt_tokens_per_second", "generation_tokens_per_second",
        "preemptions_per_second", "queue_seconds", "latency_seconds",
    )  # fmt: skip
    most = ("in_flight", "running", "waiting", "kv_cache_usage")
    return {f"{name}_mean": _mean(history.totals, name) for name in means} | {
        f"{name}_max": _most(history.totals, name) for name in most
    }


def _client(history: History) -> dict[str, float | None]:
    means = ("in_flight", "ready", "images_per_second", "prepare_seconds", "cpu_cores", "lag_seconds")
    return {f"{name}_mean": _mean(history.totals, name) for name in means} | {
        "peak_memory_mib": _most(history.totals, "peak_memory_mib")
    }


def _mean(totals: dict[str, Totals], name: str) -> float | None:
    return round(totals[name].mean, 4) if name in totals else None


def _most(totals: dict[str, Totals], name: str) -> float | None:
    return round(totals[name].max, 4) if name in totals else None


def _cell(value: float | None, unit: str = "", scale: float = 1) -> str:
    if value is None:
        return "–"
    value *= scale
    return f"{value:,.0f}{unit}" if abs(value) >= 10 or value == 0 else f"{value:.2g}{unit}"


def _of_total(used: float | None, total: float | None) -> str:
    if used is None or not total:
        return "–"
    return f"{used / 1024:.1f} of {total / 1024:.1f} GiB"
