"""`python -m stand_in --port 8000`: runs the stand-in."""

import argparse
import time
from dataclasses import fields

import uvicorn

from stand_in.batching import Timing
from stand_in.server import Settings, create_app
from vllm_annotate.recipe.families import FAMILIES


def main() -> None:
    """Serves on loopback until stopped."""
    options = argparse.ArgumentParser(description="A stand-in for vLLM: coloured shapes, no model.")
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--model", default="stand-in-qwen2.5-vl")
    options.add_argument("--family", choices=FAMILIES, default=Settings.family, help="whose boxes it writes")
    options.add_argument("--min-visual-tokens", type=int, default=Settings.min_visual_tokens, help="of Qwen's families")
    options.add_argument("--max-visual-tokens", type=int, default=Settings.max_visual_tokens, help="of Qwen's families")
    options.add_argument("--api-key")
    for setting in fields(Timing):
        option = f"--{setting.name.replace('_', '-')}"
        options.add_argument(option, type=type(setting.default), default=setting.default)
    options.add_argument("--start-seconds", type=float, default=0.0, help="simulated time to load the model")
    options.add_argument("--canned", action="store_true", help="the same answer for every image, for measuring clients")
    options.add_argument("--no-metrics", action="store_true", help="no /metrics, as behind a gateway")
    options.add_argument("--no-usage", action="store_true", help="no token counts, as behind some gateways")
    given = options.parse_args()
    print("This is a stand-in for vLLM, not a model: it finds coloured shapes by their pixels.", flush=True)
    time.sleep(given.start_seconds)
    timing = Timing(**{setting.name: getattr(given, setting.name) for setting in fields(Timing)})
    settings = Settings(
        model=given.model,
        family=given.family,
        min_visual_tokens=given.min_visual_tokens,
        max_visual_tokens=given.max_visual_tokens,
        api_key=given.api_key,
        timing=timing,
        canned=given.canned,
        metrics=not given.no_metrics,
        usage=not given.no_usage,
    )
    uvicorn.run(create_app(settings), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
