"""The `vllm` command of the stand-in, for tests that start and watch a server.

Like vLLM, it takes time to load, has an engine process, dies when that is killed, and prints to standard error why it
does not start. Environment variables set its behaviour:

    STAND_IN_VERSION        the output of --version
    STAND_IN_LOAD_SECONDS   the time to load
    STAND_IN_DIES_SAYING    print this and exit with code 1 instead of starting
    STAND_IN_SLOTS, STAND_IN_PREFILL_SECONDS
    STAND_IN_FAULTS         what the first requests get, a JSON list of faults
"""

import argparse
import os
import subprocess
import sys
import threading
import time

import uvicorn
from pydantic import TypeAdapter

from stand_in.batching import Timing
from stand_in.faults import Fault
from stand_in.server import VERSION, Settings, create_app
from vllm_annotate.errors import UsageError
from vllm_annotate.recipe.families import resolve_family


def main() -> int:
    """Runs `vllm --version` or `vllm serve MODEL …`."""
    if sys.argv[1:] == ["--version"]:
        print("INFO 11-22 22:00:00 [__init__.py:1] a line of its log")
        print(os.environ.get("STAND_IN_VERSION", VERSION))
        return 0
    options = argparse.ArgumentParser()
    options.add_argument("command", choices=["serve"])
    options.add_argument("model")
    options.add_argument("--served-model-name")
    options.add_argument("--host")
    options.add_argument("--port", type=int)
    given, _ = options.parse_known_args()
    print("INFO 11-22 22:00:00 [utils.py:1] non-default args: {'trust_remote_code': False}", flush=True)
    if (words := os.environ.get("STAND_IN_DIES_SAYING")) is not None:
        print(words, file=sys.stderr)
        return 1
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", "VLLM::EngineCore"])
    threading.Thread(target=die_with, args=[engine], daemon=True).start()
    time.sleep(float(os.environ.get("STAND_IN_LOAD_SECONDS", "0")))
    timing = Timing(
        slots=int(os.environ.get("STAND_IN_SLOTS", "64")),
        prefill_seconds=float(os.environ.get("STAND_IN_PREFILL_SECONDS", "0.01")),
    )
    settings = Settings(
        model=given.served_model_name,
        family=family_of(given.served_model_name),
        api_key=os.environ.get("VLLM_API_KEY"),
        timing=timing,
        faults=TypeAdapter(list[Fault]).validate_json(os.environ.get("STAND_IN_FAULTS", "[]")),
    )
    uvicorn.run(create_app(settings), host=given.host, port=given.port, log_level="warning")
    engine.kill()
    return 0


def family_of(model: str) -> str:
    """The family whose boxes the model writes, by its name."""
    try:
        return resolve_family("auto", model).name
    except UsageError:
        return Settings.family


def die_with(engine: "subprocess.Popen[bytes]") -> None:
    """Exits once the engine is gone, with code 0, like vLLM."""
    engine.wait()
    print("EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.", flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
